"""A causal LM that is shown both responses and answers with a letter (as RLHFlow's pair-preference models).

With l_A and l_B the logits of the two letters as the next token after the chat template's header of an answer,

    P(first beats second) = exp(l_A) / (exp(l_A) + exp(l_B)) .

By default the input is that of RLHFlow/pair-preference-model-LLaMA3-8B: the context in plain turns, both responses in
one user's turn, and no begin token. For responses of several turns nothing is published: they stand there as their
transcripts. Longer inputs than the model reads are abstained from, and not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nashpo.llm.judges.chat import messages
from nashpo.llm.judges.config import PairLMConfig
from nashpo.llm.judges.judge import Pair, Verdict
from nashpo.llm.judges.model_judge import ModelJudge, limit, load_tokenizer, too_long
from nashpo.llm.transcript import response_text


class PairLM(ModelJudge):
    """A pair-preference LM as a judge; the raw answer is ``{"logits": [l_A, l_B]}``.

    Parameters
    ----------
    config : PairLMConfig
    device : str
    """

    name = "pair_lm"
    antisymmetric = False
    left = True

    def __init__(self, config: PairLMConfig, device: str) -> None:
        super().__init__(config, device)
        self.settings = config
        self.letters: tuple[int, ...] = ()
        self.most: int | None = None

    def load(self, folder: Path) -> None:
        """Read model and tokenizer, and find the letters.

        Raises
        ------
        ValueError
            If the tokenizer has no chat template, or a letter is not one token.
        """
        from transformers import AutoModelForCausalLM

        self.tokenizer = load_tokenizer(folder)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"judge: the tokenizer of {self.config.path} has no chat template, which pair_lm needs")
        self.letters = tuple(self._letter(text) for text in (self.settings.first_label, self.settings.second_label))
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=self.dtype)
        self.most = limit(self.tokenizer, self.model.config, self.settings.max_length)

    def _letter(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"judge: the label {text!r} is {len(ids)} tokens {ids} of {self.config.path}; choose labels of one"
                " token as first_label and second_label"
            )
        return int(ids[0])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of the letters (B, 2)."""
        places = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1, use_cache=False
        ).logits
        logits: Tensor = out[:, -1, list(self.letters)].float()
        return logits

    def encode(self, pair: Pair) -> list[int]:
        """Token ids of the question."""
        context = self.tokenizer.apply_chat_template(
            messages(pair.prompt), chat_template=self.settings.context, tokenize=False
        )
        first, second = response_text(pair.first), response_text(pair.second)
        text = self.settings.template.format(context=context, first=first, second=second)
        ids: list[int] = list(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=True, return_dict=False, add_generation_prompt=True
            )
        )
        begins = not self.settings.begin_token and ids[:1] == [self.tokenizer.bos_token_id]
        return ids[1:] if begins else ids

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The softmax of the two logits of each pair."""
        if not pairs:
            return []
        self.ready()
        rows = [self.encode(pair) for pair in pairs]
        verdicts = [too_long(len(row), self.most) for row in rows]
        kept = [n for n, verdict in enumerate(verdicts) if verdict is None]
        logits = self.read([rows[n] for n in kept]) if kept else torch.zeros(0, 2)
        for n, two in zip(kept, logits, strict=True):
            raw: dict[str, Any] = {"logits": two.tolist()}
            verdicts[n] = Verdict(float((two[0] - two[1]).sigmoid()), raw)
        return [verdict for verdict in verdicts if verdict is not None]
