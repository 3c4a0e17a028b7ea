"""What a rule needs of its recipe (pairs, responses of its own, a judge), told from its form and not from its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nashpo.core.rules import Rule
from nashpo.core.rules.form import Form
from nashpo.llm.quantized import check_quantization

if TYPE_CHECKING:
    from nashpo.llm.recipe.schema import Recipe

BEHAVIOR = "behavior"
JUDGED = ("win", "reward")
"""Payoffs that a judge answers where responses are sampled."""
LEAVES = 1024
"""Most conversations per prompt of a tree: half a million comparisons."""


@dataclass(frozen=True)
class Needs:
    """What the stages of a form read.

    Attributes
    ----------
    pairs : bool
        Labelled pairs: for payoffs about the policy behind the data, and for critics.
    samples : bool
        Responses that the run samples itself.
    judge : bool
        Win rates or rewards of such responses.
    """

    pairs: bool
    samples: bool
    judge: bool

    @classmethod
    def of(cls, form: Form) -> "Needs":
        """Read from the stages that are trained."""
        origins: Mapping[str, str | None] = dict(form.slots)
        pairs = samples = judge = False
        for stage in form.stages:
            for payoff, _ in stage.payoffs:
                offline = origins.get(payoff.policy) == BEHAVIOR and origins.get(stage.on or "") == BEHAVIOR
                pairs |= offline or payoff.kind == "critic"
                samples |= not offline
                judge |= not offline and payoff.kind in JUDGED
        return cls(pairs, samples, judge)


def check(recipe: "Recipe") -> None:
    """Hold the parts of a recipe against each other.

    A tiny model that is built brings prompts and a judge of its own, which may then be left out.

    Raises
    ------
    ValueError
        One line that names the keys.
    """
    rule = recipe.rule
    name = recipe.rule_spec["name"]
    _check_iterations(recipe, rule, name)
    needs = Needs.of(rule.form())
    _require(recipe, name, needs)
    if needs.judge and recipe.sampling is not None and recipe.sampling.K < 2:
        raise ValueError(
            f"sampling.K = {recipe.sampling.K}: {name} compares responses to one prompt, so that at least 2 are needed"
        )
    _check_conversation(recipe, name, needs)
    _check_evaluation(recipe)
    _check_reference(recipe)
    _check_weights(recipe)
    if recipe.keep_last is not None and recipe.keep_last < 1:
        raise ValueError(f"keep_last = {recipe.keep_last} must be at least 1; null keeps every iterate")
    if not 0 <= recipe.max_abstained <= 1:
        raise ValueError(f"max_abstained = {recipe.max_abstained} must be a share in [0, 1]")


def _check_iterations(recipe: "Recipe", rule: Rule, name: str) -> None:
    count, form = recipe.iterations.count, rule.form()
    if form.horizon is not None and count > form.horizon:
        raise ValueError(
            f"iterations.count = {count}, but {name} is printed for {form.horizon}: set iterations.count={form.horizon}"
            f" or take the rule's iterative form (iterative-{name})"
        )
    for t in range(count):
        for stage in form.stages:
            stage.base_at(t)  # a schedule may leave its range on the way


def _require(recipe: "Recipe", name: str, needs: Needs) -> None:
    pairs = "prompt, chosen and rejected"
    wanted = {
        "pairs": (needs.pairs, f"learns from labelled pairs ({pairs})"),
        "prompts": (needs.samples and not needs.pairs, "compares responses that it samples to prompts"),
        "sampling": (needs.samples, "samples responses"),
        "judge": (needs.judge, "asks who wins"),
    }
    brought = ("prompts", "judge") if recipe.model.build is not None else ()
    for key, (needed, why) in wanted.items():
        if needed and getattr(recipe, key) is None and key not in brought:
            raise ValueError(f"{key} is missing: {name} {why}")
    if recipe.pairs is not None and not needs.pairs:
        raise ValueError(f"pairs is given, but {name} samples its own responses: give prompts instead")
    if recipe.prompts is not None and needs.pairs:
        raise ValueError(f"prompts is given, but {name} takes its prompts from pairs: leave prompts out")


def _check_conversation(recipe: "Recipe", name: str, needs: Needs) -> None:
    """That responses of several turns can be drawn, and are those of a tiny model where one is built."""
    talk, built = recipe.conversation, recipe.model.build
    turns = 1 if built is None else built.turns
    if talk is None:
        if turns > 1:
            raise ValueError(
                f"conversation is missing: model.build.turns = {turns} makes conversations; give conversation={{turns:"
                f" {turns}, text_template: ' {{text}} '}}"
            )
        return
    if needs.pairs or not needs.samples:
        why = "learns from labelled pairs" if needs.pairs else "samples no responses"
        raise ValueError(f"conversation is given, but {name} {why}: leave it out, or take a rule that samples")
    if built is not None and talk.turns != turns:
        mend = f"set model.build.turns={talk.turns}" if turns == 1 else f"set conversation.turns={turns}"
        raise ValueError(
            f"conversation.turns = {talk.turns}, but model.build.turns = {turns}: {mend}; what is enumerated must be"
            " what is sampled"
        )
    if talk.user is not None and built is not None and recipe.evaluation is not None and recipe.evaluation.exact:
        raise ValueError(
            "conversation.user is given, but evaluation.exact is about the other side that model.build brings: leave"
            " conversation.user out, or set evaluation.exact=false"
        )
    if talk.user is None and built is None:
        raise ValueError("conversation.user is missing: say who answers, as user={kind: script, says: ['Why?']}")
    K = 0 if recipe.sampling is None else recipe.sampling.K
    if (leaves := talk.leaves(K)) > max(K, LEAVES):
        raise ValueError(
            f"conversation.level = state with sampling.K = {K} and conversation.branches = {talk.draws(K)[-1]} makes"
            f" {leaves:,} conversations per prompt to compare with each other; {LEAVES:,} can be: set a smaller"
            " conversation.branches or sampling.K"
        )
    new = 0 if recipe.sampling is None else recipe.sampling.max_new_tokens
    if talk.max_tokens is not None and talk.max_tokens <= new:
        raise ValueError(
            f"conversation.max_tokens = {talk.max_tokens} leaves no room for a second answer behind the first of"
            f" sampling.max_new_tokens = {new}: raise it above {2 * new}"
        )


def _check_weights(recipe: "Recipe") -> None:
    """That the weights which are trained are of a kind that can be trained as is asked."""
    model, training = recipe.model, recipe.training
    if model.quantization is not None:
        check_quantization(model.quantization, model.adapter is not None)
    if training.get("bf16_rounding") == "stochastic":
        if model.adapter is not None:
            raise ValueError(
                "training.bf16_rounding is for whole models, and model.adapter trains float32 ones: leave it out"
            )
        if model.dtype != "bfloat16":
            raise ValueError(f"training.bf16_rounding = stochastic needs model.dtype=bfloat16, and it is {model.dtype}")


def _check_reference(recipe: "Recipe") -> None:
    """What a reference may say of itself; it is read in the model's dtype, by the model's tokenizer."""
    found = recipe.reference
    if found is None:
        return
    if found.path is None:
        raise ValueError("reference.build: the reference must have weights: give reference.path")
    for key in ("adapter", "tokenizer", "chat_template_kwargs"):
        if getattr(found, key) is not None:
            raise ValueError(f"reference.{key} is given, but a reference is read as the model is: leave it out")
    if found.dtype not in ("float32", recipe.model.dtype):
        raise ValueError(f"reference.dtype = {found.dtype}: the reference has model.dtype = {recipe.model.dtype}")
    same = recipe.model.path is not None and Path(found.path) == Path(recipe.model.path)
    if same and found.revision != recipe.model.revision:
        raise ValueError(
            f"reference and model are {found.path} at two revisions: download one of them and give its folder"
        )


def _check_evaluation(recipe: "Recipe") -> None:
    evaluation = recipe.evaluation
    if evaluation is None or not evaluation.against:
        return
    tiny = recipe.model.build is not None
    for key in ("sampling",) if tiny else ("sampling", "judge"):
        if getattr(recipe, key) is None:
            raise ValueError(
                f"{key} is missing: evaluation.against = {list(evaluation.against)} compares responses on held-out"
                " prompts; set evaluation.against=[] to leave win rates out"
            )
    data = recipe.data
    if evaluation.prompts is None and not (tiny if data is None else data.heldout):
        where = "pairs" if recipe.prompts is None else "prompts"
        raise ValueError(
            f"evaluation has no prompts: hold some of the {where} out by {where}.heldout=100, or give"
            " evaluation.prompts"
        )
