"""PairRM: a DeBERTa encoder that reads a prompt and two responses together (Jiang, Ren and Lin 2023, LLM-Blender).

The input is ``[CLS]<|source|>prompt[SEP][CLS]<|candidate1|>first[SEP][CLS]<|candidate2|>second[SEP]``. With h_s, h_1
and h_2 the last hidden states (H) at the three markers,

    score_k = mean over tasks of  W_2 tanh(W_1 [h_s; h_k] + b_1) + b_2 ,
    P(first beats second) = σ(score_1 − score_2) ,

from the pair itself: no other response enters. The ends of texts that do not fit are cut off, as published. Responses
of several turns (`nashpo.llm.judges.pairrm_turns`) are never cut, since their ends are the last answers: what does not
fit is abstained from. Swapping the responses does not negate the difference, so that both
orders are asked. Two layouts of the published weights are read: that of llm-blender/PairRM, whose ``config.json`` holds
the ranker's settings and names the encoder, and that of llm-blender/PairRM-hf, whose ``config.json`` is the encoder's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nashpo.llm.judges.config import PairRMConfig
from nashpo.llm.judges.judge import Pair, Verdict
from nashpo.llm.judges.model_judge import ModelJudge, load_tokenizer, too_long
from nashpo.llm.judges.pairrm_turns import parts
from nashpo.llm.judges.weights import check_keys, find_folder, read_state

SOURCE, FIRST, SECOND, EITHER = MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
"""Added to the encoder's tokenizer in this order; the last is unused here."""
MARKER_KEYS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
"""Where the second layout says their ids."""


class CrossComparison(nn.Module):  # type: ignore[misc]
    """The architecture; the names of its parts are those of the checkpoint.

    Parameters
    ----------
    encoder : nn.Module
        A DeBERTa-v2 model of hidden size H.
    tasks : int
        Outputs of the head, which are averaged.
    """

    def __init__(self, encoder: nn.Module, tasks: int) -> None:
        super().__init__()
        size = encoder.config.hidden_size
        self.pretrained_model = encoder
        # Dropout has no effect here; it gives the layers the numbers that they have in the checkpoint.
        self.head_layer = nn.Sequential(
            nn.Dropout(), nn.Linear(2 * size, size), nn.Tanh(), nn.Dropout(), nn.Linear(size, tasks)
        )

    def forward(self, ids: Tensor, mask: Tensor, markers: Sequence[int]) -> Tensor:
        """Scores (B, 2) of the first and the second response.

        Parameters
        ----------
        ids, mask : (B, L)
        markers : 3 ids
            Of the prompt and the two responses; each stands once in a row.
        """
        hidden = self.pretrained_model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)
        prompt, first, second = (hidden[rows, (ids == marker).int().argmax(1)] for marker in markers)
        pairs = torch.stack([torch.cat([prompt, first], -1), torch.cat([prompt, second], -1)], 1)
        return self.head_layer(pairs).float().mean(-1)


class PairRM(ModelJudge):
    """PairRM as a judge; the raw answer is ``{"score": score_1 − score_2}`` in nats.

    Parameters
    ----------
    config : PairRMConfig
    device : str
    """

    name = "pairrm"
    antisymmetric = False

    def __init__(self, config: PairRMConfig, device: str) -> None:
        super().__init__(config, device)
        self.settings = config
        self.markers: tuple[int, ...] = ()

    def load(self, folder: Path) -> None:
        """Read either layout.

        Raises
        ------
        ValueError
            If tensors are missing, unexpected or of another shape, the encoder is no DeBERTa-v2, or its tokenizer is
            another one.
        """
        from transformers import AutoConfig, DebertaV2Model
        from transformers.initialization import no_init_weights

        ranker = json.loads((folder / "config.json").read_text())
        base = self._base(folder, ranker)
        config = AutoConfig.from_pretrained(str(base))
        if config.model_type != "deberta-v2":
            raise ValueError(f"{base}: PairRM's encoder is of type deberta-v2, not {config.model_type}")
        # Versions of transformers before 4.31 also saved the numbers of the positions.
        state = {k: v for k, v in read_state(folder).items() if not k.endswith("embeddings.position_ids")}
        embeddings = state.get("pretrained_model.embeddings.word_embeddings.weight")
        if embeddings is not None:
            config.vocab_size = len(embeddings)
        with no_init_weights():
            model = CrossComparison(DebertaV2Model(config), int(ranker.get("n_tasks", 1)))
        check_keys(folder, state, model.state_dict(), "PairRM")
        model.load_state_dict(state)
        self.model = model
        self.tokenizer = load_tokenizer(folder if (folder / "tokenizer_config.json").is_file() else base)
        self.markers = _markers(self.tokenizer, ranker, config.vocab_size, folder)

    def _base(self, folder: Path, ranker: dict[str, Any]) -> Path:
        """Where the encoder's configuration is."""
        if self.settings.base is not None:
            return find_folder(self.settings.base, small=True)
        if "hidden_size" in ranker:
            return folder
        if not ranker.get("model_name"):
            raise ValueError(f"{folder / 'config.json'} names no encoder as model_name: give it as judge.base")
        return find_folder(ranker["model_name"], small=True)

    def check(self) -> None:
        """That both the checkpoint's and the encoder's configuration are there, and the weights fit them."""
        folder = find_folder(self.config.path, self.config.revision, small=True)
        if (folder / "config.json").is_file():
            self._base(folder, json.loads((folder / "config.json").read_text()))
        super().check()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, 2)."""
        scores: Tensor = self.model(ids, mask, self.markers[:3])
        return scores

    def encode(self, pair: Pair) -> list[int]:
        """Token ids of a pair: what a short prompt leaves is shared by the responses; the ends of texts are cut off.

        Of a pair with a conversation all is there, however much it is.
        """
        source, first, second = parts(pair)
        source = self.settings.template.format(prompt=source)
        if not (isinstance(pair.first, str) and isinstance(pair.second, str)):
            return self._part(SOURCE, source) + self._part(FIRST, first) + self._part(SECOND, second)
        ids = self._part(SOURCE, source, self.settings.source_tokens)
        share = (self._most - len(ids)) // 2
        return ids + self._part(FIRST, first, share) + self._part(SECOND, second, share)

    @property
    def _most(self) -> int:
        """The longest input in tokens."""
        return self.settings.source_tokens + 2 * self.settings.candidate_tokens

    def _part(self, marker: str, text: str, most: int | None = None) -> list[int]:
        # A text must not end its part, nor begin another one.
        for control in (self.tokenizer.sep_token, *MARKERS):
            text = text.replace(control, " ")
        cut = {"truncation": False} if most is None else {"truncation": True, "max_length": most}
        return list(self.tokenizer(marker + text, **cut)["input_ids"])

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """σ(score_1 − score_2) of each pair; an abstention from conversations that are longer than texts may be."""
        if not pairs:
            return []
        self.ready()
        rows = [self.encode(pair) for pair in pairs]
        verdicts = [too_long(len(row), self._most) for row in rows]
        kept = [n for n, verdict in enumerate(verdicts) if verdict is None]
        if kept:
            scores = self.read([rows[n] for n in kept])
            margins = scores[:, 0] - scores[:, 1]
            for n, probability, margin in zip(kept, margins.sigmoid().tolist(), margins.tolist(), strict=True):
                verdicts[n] = Verdict(probability, {"score": margin})
        return [verdict for verdict in verdicts if verdict is not None]


def _markers(tokenizer: Any, ranker: dict[str, Any], rows: int, folder: Path) -> tuple[int, ...]:
    """Ids of the markers, added where the tokenizer has none; they must be those that the weights were trained with."""
    tokenizer.add_tokens(list(MARKERS))
    ids = tuple(int(i) for i in tokenizer.convert_tokens_to_ids(list(MARKERS)))
    known = tuple(ranker[key] for key in MARKER_KEYS if key in ranker)
    if known and known != ids:
        raise ValueError(f"{folder}: the tokenizer gives the markers the ids {ids}, the checkpoint has {known}")
    if not known and len(tokenizer) != rows:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens with the markers, the checkpoint {rows}: give the"
            " encoder's own tokenizer as judge.base"
        )
    probe = tokenizer(SOURCE + "a")["input_ids"]
    if tokenizer.sep_token_id is None or probe[-1] != tokenizer.sep_token_id or probe.count(ids[0]) != 1:
        raise ValueError(f"{folder}: the tokenizer must end a text with its separator and keep {SOURCE} as one token")
    return ids
