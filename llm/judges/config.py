"""Settings of the judges as they stand in a recipe under ``judge``, one frozen dataclass per judge.

Lengths are in tokens. Loading this imports no torch: ``build`` imports the judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from nashpo.core.cli import suggestion
from nashpo.llm.judges.api_config import APIJudgeConfig
from nashpo.llm.judges.judge import Judge, JudgeConfig
from nashpo.llm.judges.settings import check_count, check_positive, check_template, require
from nashpo.llm.settings import setting

DTYPES = ("float32", "bfloat16", "float16")
FORM_NAMES = ("pairs", "ranks", "probabilities", "reward")
"""How a Python callable may be called."""

PAIR_CONTEXT = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
"""How RLHFlow's pair-preference models are given the context, as a chat template."""
PAIR_TEMPLATE = "[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
"""The user's turn of RLHFlow's pair-preference models."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(JudgeConfig):
    """A known game; see `nashpo.llm.judges.table`."""

    path: str = setting("a .json or .npz file with prompts, responses and their win rates P")

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.table import TableJudge

        return TableJudge.read(self.path)


@dataclass(frozen=True, kw_only=True)
class FunctionConfig(JudgeConfig):
    """A Python callable; see `nashpo.llm.judges.function`."""

    function: str = setting("module:name of what judges")
    form: str = setting("how it is called: pairs, ranks, probabilities or reward", "pairs")

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        require("function", self.function, bool(module and name), "module:name, as my_judges:longer")
        if self.form not in FORM_NAMES:
            raise ValueError(f"judge.form is {self.form!r}; {suggestion(self.form, FORM_NAMES)}")

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.function import function_judge

        return function_judge(self.function, self.form)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(JudgeConfig):
    """What every judge with weights of its own is told."""

    path: str = setting("folder of the weights, or name on the hub")
    revision: str | None = setting("branch, tag or commit on the hub", None)
    dtype: str = setting("of weights and activations: float32, bfloat16 or float16", "float32")
    device: str | None = setting("where it computes, as cuda:1; default where the policy is", None)
    batch_size: int = setting("sequences read at a time", 16)

    def __post_init__(self) -> None:
        require("dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        check_count("batch_size", self.batch_size, "sequences")


@dataclass(frozen=True, kw_only=True)
class PairRMConfig(ModelConfig):
    """PairRM; see `nashpo.llm.judges.pairrm`."""

    path: str = setting("folder of the checkpoint, or name on the hub", "llm-blender/PairRM")
    base: str | None = setting(
        "folder or hub name of the encoder's config.json and tokenizer; default what the checkpoint names", None
    )
    source_tokens: int = setting("longest prompt; the end is cut off", 1224)
    candidate_tokens: int = setting("longest response after the longest prompt; shorter prompts leave more", 412)
    template: str = setting("what is written around the prompt", "{prompt}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("source_tokens", self.source_tokens, "tokens", 3)
        check_count("candidate_tokens", self.candidate_tokens, "tokens", 3)
        check_template("template", self.template, ("prompt",))

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.pairrm import PairRM

        return PairRM(self, self.device or device)


@dataclass(frozen=True, kw_only=True)
class UCLAPairRMConfig(PairRMConfig):
    """PairRM read as in UCLA's SPPO code, for reproduction; see `nashpo.llm.judges.ucla`."""

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.ucla import UCLAAverageScores

        return UCLAAverageScores(super().build(device))


@dataclass(frozen=True, kw_only=True)
class PairLMConfig(ModelConfig):
    """A causal LM that answers with a letter; see `nashpo.llm.judges.pair_lm`."""

    max_length: int | None = setting("longest input; longer ones are abstained from; default the model's limit", None)
    context: str = setting("chat template that writes the prompt as {context}", PAIR_CONTEXT)
    template: str = setting("the user's turn, with {context}, {first} and {second}", PAIR_TEMPLATE)
    first_label: str = setting("the answer that says that the first response is better, one token", "A")
    second_label: str = setting("the answer that says that the second response is better, one token", "B")
    begin_token: bool = setting("keep the begin token that the chat template writes", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None:
            check_count("max_length", self.max_length, "tokens")
        check_template("template", self.template, ("context", "first", "second"))
        require("second_label", self.second_label, self.second_label != self.first_label, "another than first_label")

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.pair_lm import PairLM

        return PairLM(self, self.device or device)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(ModelConfig):
    """A Bradley-Terry reward model; see `nashpo.llm.judges.reward_model`."""

    max_length: int | None = setting("longest input; longer ones are abstained from; default the model's limit", None)
    template: str | None = setting(
        "plain text with {prompt} and {response}; default what the model was trained with, else its chat template", None
    )
    trust_remote_code: bool = setting("run code that comes with the weights", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None:
            check_count("max_length", self.max_length, "tokens")
        if self.template is not None:
            check_template("template", self.template, ("prompt", "response"))

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.reward_model import RewardModel

        return RewardModel(self, self.device or device)


@dataclass(frozen=True, kw_only=True)
class GPMConfig(ModelConfig):
    """A general preference embedding; see `nashpo.llm.judges.gpm`."""

    max_length: int | None = setting("longest input; longer ones are abstained from; default the model's limit", None)
    tau: float = setting("temperature of the score: P = sigmoid(score / tau)", 0.1)
    normalize: bool = setting("divide embeddings by their length", True)
    special_tokens: bool = setting("add the tokenizer's begin token to the chat template's, as published", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None:
            check_count("max_length", self.max_length, "tokens")
        check_positive("tau", self.tau)

    def build(self, device: str) -> Judge:
        """The judge, its module imported now."""
        from nashpo.llm.judges.gpm import GPM

        return GPM(self, self.device or device)


JUDGES: dict[str, type[JudgeConfig]] = {
    "table": TableConfig,
    "function": FunctionConfig,
    "pairrm": PairRMConfig,
    "ucla_pairrm": UCLAPairRMConfig,
    "pair_lm": PairLMConfig,
    "reward_model": RewardModelConfig,
    "gpm": GPMConfig,
    "api": APIJudgeConfig,
}
"""Names of the judges in a recipe: ``judge: {kind: ...}``."""
