"""A Bradley-Terry reward model: a sequence classifier with one label, r(prompt, response) in nats.

    P(first beats second) = σ(r_first − r_second) .

The input is the conversation in the model's chat template, or plain text from a template with ``{prompt}`` and
``{response}``. A response of several turns goes on with the prompt's messages in the chat template, and is its
transcript in a plain one; longer inputs than the model reads are abstained from, and not cut. A model trained by
`nashpo.llm.judges.train_reward` carries its template in ``config.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nashpo.llm.judges.chat import whole_conversation
from nashpo.llm.judges.config import RewardModelConfig
from nashpo.llm.judges.judge import Text, Verdict
from nashpo.llm.judges.model_judge import limit, load_tokenizer
from nashpo.llm.judges.scoring import ScoringJudge
from nashpo.llm.prompts import prompt_text
from nashpo.llm.transcript import Response, response_text

TEMPLATE_KEY = "reward_template"
"""Where ``config.json`` says the template that a reward model was trained with."""


class RewardModel(ScoringJudge):
    """A reward model as a judge; the raw answer is ``{"rewards": [r_first, r_second]}``.

    Parameters
    ----------
    config : RewardModelConfig
    device : str
    """

    name = "reward_model"

    def __init__(self, config: RewardModelConfig, device: str) -> None:
        super().__init__(config, device)
        self.settings = config
        self.template: str | None = config.template

    def load(self, folder: Path) -> None:
        """Read model and tokenizer.

        Raises
        ------
        ValueError
            If the model has several labels, its checkpoint lacks weights (transformers would draw them at random), or
            there is no template.
        """
        from transformers import AutoModelForSequenceClassification

        trust = self.settings.trust_remote_code
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        self.model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=self.dtype, trust_remote_code=trust, output_loading_info=True
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(f"{self.config.path} is no reward model: its checkpoint lacks {', '.join(missing[:3])}")
        labels = self.model.config.num_labels
        if labels != 1:
            raise ValueError(f"{self.config.path} has {labels} labels; a Bradley-Terry reward model has one")
        if self.model.config.get_text_config().pad_token_id is None:
            self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        trained = getattr(self.model.config, TEMPLATE_KEY, None)
        if self.template is None:
            self.template = trained
        elif trained is not None and trained != self.template:
            raise ValueError(
                f"judge.template is {self.template!r}, but {self.config.path} was trained with {trained!r}: leave it"
                " out"
            )
        if self.template is None and self.tokenizer.chat_template is None:
            raise ValueError(f"judge: the tokenizer of {self.config.path} has no chat template; give judge.template")
        self.most = limit(self.tokenizer, self.model.config, self.settings.max_length)

    def encode(self, prompt: Text, response: Response | None) -> list[int]:
        """Token ids of a response behind its prompt."""
        return encode(self.tokenizer, self.template, prompt, response or "")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards (B, 1)."""
        rewards: Tensor = self.model(input_ids=ids, attention_mask=mask).logits.float()
        return rewards

    def verdicts(self, *readings: Tensor) -> list[Verdict]:
        """σ(r_first − r_second)."""
        first, second = readings
        wins = (first - second).sigmoid()[:, 0].tolist()
        rewards = zip(first[:, 0].tolist(), second[:, 0].tolist(), strict=True)
        return [Verdict(win, {"rewards": list(both)}) for win, both in zip(wins, rewards, strict=True)]


def encode(tokenizer: Any, template: str | None, prompt: Text, response: Response) -> list[int]:
    """Token ids of what a reward model reads: a filled template, or the chat template of the tokenizer."""
    if template is None:
        turns = whole_conversation(tokenizer, prompt, response)
        return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    text = template.format(prompt=prompt_text(prompt), response=response_text(response))
    return list(tokenizer(text)["input_ids"])
