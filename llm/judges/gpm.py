"""General preference embedding (Zhang, Zhang, Wu, Xu and Gu 2024, GPM): a judge that can hold cycles.

Each response has an embedding v in R^{2m}, of length 1, and

    score(a, b) = Σ_k λ_k (v_{2k}(a) v_{2k+1}(b) − v_{2k+1}(a) v_{2k}(b)) ,      P(a beats b) = σ(score / τ) ,

which is v(a)ᵀ Rᵀ v(b) with R block-diagonal and skew, so that score(b, a) = −score(a, b) to the last bit. λ = 1, or,
where the checkpoint has a prompt head, the softmax of its m outputs on the prompt. Layout of the published checkpoints:
a causal LM's weights with ``value_head.weight`` (2m, H) and, in some, ``prompt_head.weight`` (m, H). The embedding is
read at the last token, which is replaced by the end token; λ at the last token of the prompt alone. A response of
several turns goes on with the prompt's messages in the chat template; longer inputs than the model reads are abstained
from, and not cut.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nashpo.llm.judges.chat import whole_conversation
from nashpo.llm.judges.config import GPMConfig
from nashpo.llm.judges.judge import Pair, Text, Verdict
from nashpo.llm.judges.model_judge import limit, load_tokenizer
from nashpo.llm.judges.scoring import ScoringJudge
from nashpo.llm.transcript import Response

VALUE_HEAD, PROMPT_HEAD = "value_head.weight", "prompt_head.weight"
INDEX = "model.safetensors.index.json"


class GPM(ScoringJudge):
    """A general preference embedding as a judge; the raw answer is ``{"score": score(first, second)}``.

    Parameters
    ----------
    config : GPMConfig
    device : str
    """

    name = "gpm"

    def __init__(self, config: GPMConfig, device: str) -> None:
        super().__init__(config, device)
        self.settings = config
        self._heads: dict[str, Tensor] = {}

    def load(self, folder: Path) -> None:
        """Read the model without its output layer, and the heads.

        Raises
        ------
        ValueError
            If the checkpoint has no value head, or one that does not fit.
        """
        from transformers import AutoModel

        self.tokenizer = load_tokenizer(folder)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"judge: the tokenizer of {self.config.path} has no chat template, which gpm needs")
        self.model, info = AutoModel.from_pretrained(str(folder), dtype=self.dtype, output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(f"{self.config.path} is no GPM checkpoint: it lacks {', '.join(missing[:3])}")
        self._heads = {name: head.to(self.device, torch.float32) for name, head in _heads(folder).items()}
        size = self.model.config.get_text_config().hidden_size
        value, prompt = self._heads[VALUE_HEAD], self._heads.get(PROMPT_HEAD)
        if value.shape[0] % 2 or value.shape[1] != size:
            raise ValueError(f"{folder}: {VALUE_HEAD} is {tuple(value.shape)}; it must be (2m, {size})")
        if prompt is not None and prompt.shape != (value.shape[0] // 2, size):
            raise ValueError(
                f"{folder}: {PROMPT_HEAD} is {tuple(prompt.shape)}; it must be (m, {size}) with m half of 2m"
            )
        self.most = limit(self.tokenizer, self.model.config, self.settings.max_length)

    def encode(self, prompt: Text, response: Response | None) -> list[int]:
        """Token ids of the conversation, its last one the end token; or of the prompt alone."""
        turns = whole_conversation(self.tokenizer, prompt, response)
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        ids = list(self.tokenizer(text, add_special_tokens=self.settings.special_tokens)["input_ids"])
        return ids if response is None else [*ids[:-1], self.tokenizer.eos_token_id]

    def parts(self, pair: Pair) -> tuple[Response | None, ...]:
        """The two responses, and with a prompt head the prompt."""
        return (pair.first, pair.second, None) if PROMPT_HEAD in self._heads else (pair.first, pair.second)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the heads say at the last token: (B, 2m), or (B, 2m + m) with a prompt head."""
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1].float()
        return torch.cat([last @ head.T for head in self._heads.values()], -1)

    def verdicts(self, *readings: Tensor) -> list[Verdict]:
        """σ(score / τ)."""
        size = len(self._heads[VALUE_HEAD])
        first, second = (reading[:, :size] for reading in readings[:2])
        if self.settings.normalize:
            first, second = normalize(first, dim=-1), normalize(second, dim=-1)
        weights = readings[2][:, size:].softmax(-1) if len(readings) == 3 else torch.ones_like(first[:, ::2])
        scores = preference_score(first, second, weights)
        wins = (scores / self.settings.tau).sigmoid()
        return [Verdict(win, {"score": score}) for win, score in zip(wins.tolist(), scores.tolist(), strict=True)]

    def close(self) -> None:
        """Forget the weights."""
        super().close()
        self._heads = {}


def preference_score(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Σ_k λ_k (v_{2k} w_{2k+1} − v_{2k+1} w_{2k}), skew in (v, w) to the last bit.

    Parameters
    ----------
    first, second : (N, 2m)
    weights : (N, m)

    Returns
    -------
    (N,)
    """
    turned = first[:, 0::2] * second[:, 1::2] - first[:, 1::2] * second[:, 0::2]
    return (weights * turned).sum(-1)


def _heads(folder: Path) -> dict[str, Tensor]:
    """The heads, wherever the checkpoint keeps them."""
    from safetensors import safe_open

    index = folder / INDEX
    places: dict[str, str] = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    files = {places.get(name, "model.safetensors") for name in (VALUE_HEAD, PROMPT_HEAD)}
    heads: dict[str, Tensor] = {}
    for file in sorted(files):
        if not (folder / file).is_file():
            continue
        with safe_open(folder / file, framework="pt") as opened:
            held = set(opened.keys())
            heads |= {name: opened.get_tensor(name) for name in (VALUE_HEAD, PROMPT_HEAD) if name in held}
    if VALUE_HEAD not in heads:
        raise ValueError(f"{folder} is no GPM checkpoint: its safetensors hold no {VALUE_HEAD}")
    return {name: heads[name] for name in (VALUE_HEAD, PROMPT_HEAD) if name in heads}
