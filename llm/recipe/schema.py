"""The keys of a recipe, typed. A recipe is checked as a whole when it is read, before torch is imported.

A missing key has the default that stands here. `nashpo.llm.recipe.parsing` reads YAML by these classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from nashpo.core.rules import Rule
from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.engines.config import SamplingConfig
from nashpo.llm.judges.judge import JudgeConfig
from nashpo.llm.recipe import library, requirements, rules, training
from nashpo.llm.recipe.objectives import Default, ObjectiveSpec
from nashpo.llm.recipe.overrides import override
from nashpo.llm.recipe.parsing import Tagged, difference, dump, read
from nashpo.llm.recipe.yaml_text import parse_mapping, to_yaml
from nashpo.llm.tiny_config import TinyModel

__all__ = [
    "DataSpec",
    "Evaluation",
    "Iterations",
    "ModelSpec",
    "Recipe",
    "Warmup",
    "difference",
    "load_recipe",
]


def _key(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where a model comes from: a folder or hub name, or a tiny one that is built.

    Raises
    ------
    ValueError
        Unless exactly one of ``path`` and ``build`` is given.
    """

    SHORTHAND: ClassVar[str] = "path"

    path: str | None = _key(None, "a folder, or a name on the hub")
    revision: str | None = _key(None, "branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16", "float16"] = _key("float32", "of the weights that are trained")
    attention: str | None = _key(None, "attn_implementation of transformers; default its own choice")
    adapter: dict[str, Any] | None = _key(None, "train a LoRA adapter: fields of peft's LoraConfig")
    quantization: dict[str, Any] | None = _key(
        None, "QLoRA: fields of transformers' BitsAndBytesConfig, as {load_in_4bit: true}; needs an adapter"
    )
    trust_remote_code: bool = _key(False, "run code that comes with the model")
    tokenizer: str | None = _key(None, "a folder, or a name on the hub; default the model's")
    chat_template_kwargs: dict[str, Any] | None = _key(None, "for the tokenizer's chat template")
    build: TinyModel | None = _key(None, "make a tiny model instead, which brings prompts and a game")

    def __post_init__(self) -> None:
        if (self.path is None) == (self.build is None):
            given = "both are" if self.path is not None else "none is"
            raise ValueError(f"needs exactly one of path and build, and {given} given")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Prompts or preference pairs; `nashpo.llm.prompts` reads them.

    Raises
    ------
    ValueError
        On a limit below 1, or a held-out part that is negative or a share of 1 or more.
    """

    SHORTHAND: ClassVar[str] = "path"

    path: str | tuple[str, ...] = field(
        metadata={"help": "a file, a folder or a name on the hub; several are read one after the other"}
    )
    format: Literal["auto", "jsonl", "json", "parquet", "datasets", "hub"] = _key("auto", "default by the name")
    split: str = _key("train", "of a datasets folder or a hub name")
    prompt: str | None = _key(None, "column of the prompts; default prompt, else instruction, else the pairs' own")
    chat: bool = _key(False, "a prompt that is text becomes the user's turn of a conversation")
    system: str | None = _key(None, "system message before every conversation; makes conversations of text")
    limit: int | None = _key(None, "at most this many prompts, after the shuffle")
    shuffle: bool = _key(False, "in an order drawn from the recipe's seed; default the file's order")
    ignored_columns: tuple[str, ...] = _key((), "columns of pairs that mean nothing here")
    heldout: int | float = _key(0, "prompts (a number, or a share below 1) taken off the end for evaluation")

    def __post_init__(self) -> None:
        if not self.path or (not isinstance(self.path, str) and not all(self.path)):
            raise ValueError("path is empty")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit = {self.limit} must be at least 1; null reads all")
        if self.heldout < 0 or (isinstance(self.heldout, float) and self.heldout >= 1):
            raise ValueError(f"heldout = {self.heldout} must be a number of prompts, or a share below 1")

    @property
    def paths(self) -> tuple[str, ...]:
        """``path`` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, kw_only=True)
class Iterations:
    """How many iterations, and which prompts each of them has.

    Raises
    ------
    ValueError
        On a number below 1.
    """

    SHORTHAND: ClassVar[str] = "count"

    count: int = field(metadata={"help": "iterations in all"})
    prompts: Literal["split", "all"] = _key(
        "split", "equal consecutive parts of the prompts, or the same ones each time"
    )
    per_iteration: int | None = _key(None, "prompts of one iteration; default its whole part")

    def __post_init__(self) -> None:
        for name, number in (("count", self.count), ("per_iteration", self.per_iteration)):
            if number is not None and number < 1:
                raise ValueError(f"{name} = {number} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Supervised training before the first iteration.

    Raises
    ------
    ValueError
        If data are missing, or given beside ``source: tiny``.
    """

    data: DataSpec | None = _key(None, "rows with text, or with prompt and chosen")
    training: dict[str, Any] = field(default_factory=dict, metadata={"help": "as the recipe's training"})
    source: Literal["data", "tiny"] = _key("data", "data, or what the tiny model's settings say")

    def __post_init__(self) -> None:
        if (self.source == "data") != (self.data is not None):
            mend = "give data" if self.data is None else "leave data out"
            raise ValueError(f"source = {self.source!r}: {mend}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured on held-out prompts after an iteration.

    Raises
    ------
    ValueError
        On a number below 1.
    """

    prompts: DataSpec | None = _key(None, "default those that prompts.heldout (or pairs.heldout) takes off")
    K: int = _key(1, "responses per held-out prompt")
    against: tuple[Literal["reference", "previous"], ...] = _key(("reference", "previous"), "opponents of win rates")
    exact: bool = _key(False, "exact duality gaps, where every response can be enumerated")
    every: int = _key(1, "iterations between evaluations")

    def __post_init__(self) -> None:
        for name, number in (("K", self.K), ("every", self.every)):
            if number < 1:
                raise ValueError(f"{name} = {number} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run of self-play.

    Attributes
    ----------
    rule : Rule
        Made of ``rule_spec``, which is the key ``rule`` in YAML with every hyperparameter written out.

    Raises
    ------
    ValueError
        Where parts do not fit together; see `nashpo.llm.recipe.requirements`.
    """

    model: ModelSpec = field(metadata={"help": "the policy that self-play starts from"})
    rule_spec: dict[str, Any] = field(
        metadata={"help": "as {name: onpo, eta: 100}", "key": "rule", "read": rules.read_spec, "shorthand": "name"}
    )
    prompts: DataSpec | None = _key(None, "what responses are sampled to")
    pairs: DataSpec | None = _key(None, "labelled pairs, for rules that learn from data")
    sampling: SamplingConfig | None = _key(
        None,
        "engine and distribution of responses",
        tagged=Tagged("engine", "nashpo.llm.engines.config:ENGINES", "transformers"),
    )
    conversation: ConversationConfig | None = _key(
        None, "responses of several turns, with another side's answers between them; default single answers"
    )
    judge: JudgeConfig | None = _key(None, "who wins", tagged=Tagged("kind", "nashpo.llm.judges.config:JUDGES"))
    training: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of SelfPlayConfig, TrainingArguments among them"}
    )
    objective: ObjectiveSpec = _key(
        Default(), "the loss", tagged=Tagged("name", "nashpo.llm.recipe.objectives:OBJECTIVES", "default")
    )
    iterations: Iterations = field(metadata={"help": "how many, and their prompts"})
    reference: ModelSpec | None = _key(None, "the policy that rules call reference; default the start")
    start_from: str | None = _key(None, "a folder of weights to start from in place of the model's own (--from)")
    warmup: Warmup | None = _key(None, "supervised training first")
    evaluation: Evaluation | None = _key(None, "on held-out prompts")
    output_dir: Path = field(metadata={"help": "the run's folder"})
    seed: int = _key(0, "of everything random")
    keep_last: int | None = _key(None, "iterates and optimizer states that are kept; default all")
    max_abstained: float = _key(0.1, "share of prompts that may be left out because the judge abstained")

    def __post_init__(self) -> None:
        requirements.check(self)

    @cached_property
    def rule(self) -> Rule:
        """The rule."""
        return rules.build(self.rule_spec)

    @property
    def data(self) -> DataSpec | None:
        """Where the prompts come from: ``prompts``, or ``pairs`` for rules that learn from data.

        None where a tiny model brings its own.
        """
        return self.pairs if self.prompts is None else self.prompts

    def to_dict(self) -> dict[str, Any]:
        """The canonical mapping, JSON-able, with every key written out; reading it gives an equal recipe."""
        found: dict[str, Any] = dump(self)
        return found

    def to_yaml(self) -> str:
        """`to_dict` as a YAML document."""
        return to_yaml(self.to_dict())

    def notes(self) -> list[str]:
        """What is no mistake and should be known: a run's report repeats it."""
        found = []
        if self.sampling is not None and not self.sampling.sampling().exact:
            drawn = self.sampling.sampling().to_json()
            exact = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
            shown = ", ".join(f"{name} {drawn[name]:g}" for name, value in exact.items() if drawn[name] != value)
            found.append(
                f"responses are sampled with {shown}: the rules' theory is about draws from the policy itself, and"
                " log-probabilities are scored at temperature 1"
            )
        talk = self.conversation
        if talk is not None and talk.max_tokens is not None:
            whole = talk.turns * (0 if self.sampling is None else self.sampling.max_new_tokens)
            if talk.max_tokens < whole:
                found.append(
                    f"conversation.max_tokens = {talk.max_tokens} is less than {talk.turns} answers of"
                    f" sampling.max_new_tokens, {whole}: long conversations end before their last turn"
                )
        form = self.rule.form()
        by_states = talk is not None and talk.level == "state" and isinstance(self.objective, Default)
        if by_states and any(payoff.kind == "win" for payoff in form.payoffs):
            found.append(
                "conversation.level = state: win rates are fitted by their differences, as objective=pairwise; who beat"
                " whom among the answers at one state is no estimate of Q"
            )
        needs = requirements.Needs.of(form)
        if self.judge is not None and not needs.judge and (self.evaluation is None or not self.evaluation.against):
            found.append(f"judge is given, but neither {self.rule_spec['name']} nor an evaluation asks it")
        return found


def parse_recipe(text: str, place: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from the text of a YAML document.

    Parameters
    ----------
    text : str
    place : str
        What the document is called in messages.
    overrides : sequence of str
        ``key.key=value`` with a YAML value, applied in order.

    Raises
    ------
    ValueError
        One line with the full key, the value and the mend.
    """
    raw = parse_mapping(text, place)
    for assignment in overrides:
        override(raw, Recipe, assignment)
    recipe: Recipe = read(Recipe, raw)
    # Last, since this imports transformers.
    recipe = replace(recipe, training=training.check(recipe.training))
    if recipe.warmup is not None:
        checked = training.check(recipe.warmup.training, "warmup.training")
        recipe = replace(recipe, warmup=replace(recipe.warmup, training=checked))
    return recipe


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or a packaged one by its name.

    Parameters
    ----------
    source : str
        A path, or a name of `nashpo.llm.recipe.library.names`.
    overrides : sequence of str
        ``key.key=value`` with a YAML value, applied in order.

    Raises
    ------
    ValueError
        If there is no such file or name, or whatever `parse_recipe` refuses.
    """
    text, place = library.text(source)
    return parse_recipe(text, place, overrides)
