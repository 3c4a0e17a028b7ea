"""How a stage becomes a loss: generically, from its log-ratios, its targets and the pairs that are compared.

Shapes: B prompts with K responses each; ``log_ratio``, ``target`` and ``weights`` are (B, K), ``preferred`` is
(B, K, K). An objective returns the unreduced losses of `nashpo.core.losses` and their weights, (B, M) each, where M
counts responses or pairs; `reduce` takes the weighted sum within each prompt and the weighted mean over prompts.
Everything is in nats. No formula of a loss is written here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from nashpo.core.losses import (
    labelled_square,
    log_sigmoid_term,
    logistic,
    pairwise_square,
    pointwise_square,
    spac_practical,
)
from nashpo.core.policies import log_partition
from nashpo.core.rules.form import Form, Payoff, Stage


@dataclass(frozen=True)
class StageTensors:
    """What a stage's loss is made of.

    Attributes
    ----------
    log_ratio : (B, K)
        log π_θ(y) − Σ_i a_i log π_i(y), differentiable in θ.
    target : (B, K)
        Σ_j b_j g_j(y), with win rates centred: g = P̂(y ≻ π) − ½.
    weights : (B, K)
        Of the responses, >= 0: 1/K for draws from the stage's ``on``, its probabilities where all responses are
        enumerated, 0 where a prompt has fewer than K responses. They add up to 1 per prompt.
    preferred : (B, K, K), optional
        Probability or label in [0, 1] that response i beats response j, with preferred_ij + preferred_ji = 1.
    step : float, optional
        The weight b of the only payoff; None where there are several.
    log_importance : (B, K), optional
        Σ_i a_i log π_i(y) − log π_on(y), which only the estimate of log Z needs; None stands for 0, right where the
        base is ``on`` itself.
    generated : (B, K), optional
        Weights of self-generated responses among the K (SPAC); None where there are none apart.
    """

    log_ratio: Tensor
    target: Tensor
    weights: Tensor
    preferred: Tensor | None = None
    step: float | None = None
    log_importance: Tensor | None = None
    generated: Tensor | None = None


Losses = tuple[Tensor, Tensor]
"""Unreduced losses (B, M) and their weights (B, M), which add up to 1 per prompt, or to 0 where it is skipped."""


class Objective(Protocol):
    """A way to fit a stage.

    ``reads_log_importance`` says whether `StageTensors.log_importance` is used, which may cost forwards to compute.
    """

    @property
    def reads_log_importance(self) -> bool: ...

    def check(self, form: Form, stage: Stage) -> None:
        """Refuse a stage whose exact step this loss does not have as its minimizer (ValueError)."""
        ...

    def losses(self, stage: StageTensors) -> Losses:
        """The unreduced losses and their weights."""
        ...


def reduce(losses: Losses, prompt_weights: Tensor | None = None) -> Tensor:
    """Σ_b p_b Σ_m w_bm loss_bm / Σ_b p_b, the weighted mean over prompts; p = 1 by default.

    The denominator counts prompts and not pairs, so that accumulating micro-batches with ``prompt_weights`` of one
    total changes nothing.
    """
    summed = per_prompt(losses)
    if prompt_weights is None:
        return summed.mean()
    return (prompt_weights * summed).sum() / prompt_weights.sum()


def per_prompt(losses: Losses) -> Tensor:
    """Σ_m w_bm loss_bm of each prompt, (B,)."""
    values, weights = losses
    used = weights > 0  # a skipped pair may hold anything, and 0 · inf is no number
    return torch.where(used, weights * torch.where(used, values, torch.zeros_like(values)), 0.0).sum(-1)


# ---------------------------------------------------------------------------------------- which responses are compared


@dataclass(frozen=True)
class Chosen:
    """Pairs as places (B, M) with weights (B, M), and the weights (B, K) of their members in a pointwise loss.

    ``declared`` is true where the left one was chosen because it did better: its label is then 1.
    """

    left: Tensor
    right: Tensor
    weight: Tensor
    points: Tensor
    declared: bool = False


class Pairs(Protocol):
    """Which responses of a prompt enter the loss."""

    def choose(self, target: Tensor, weights: Tensor) -> Chosen:
        """From targets and weights, (B, K) each."""
        ...


def _normalized(weight: Tensor) -> Tensor:
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight / torch.where(total > 0, total, torch.ones_like(total)), 0.0)


@dataclass(frozen=True)
class All:
    """All K (K − 1)/2 pairs, and all K responses."""

    def choose(self, target: Tensor, weights: Tensor) -> Chosen:
        left, right = torch.triu_indices(target.shape[-1], target.shape[-1], 1, device=target.device)
        left, right = left.expand(len(target), -1), right.expand(len(target), -1)
        both = weights.gather(-1, left) * weights.gather(-1, right)
        return Chosen(left, right, _normalized(both), _normalized(weights))


@dataclass(frozen=True)
class Iid:
    """The ⌊K/2⌋ disjoint pairs (1, 2), (3, 4), … of independent draws, and their members."""

    def choose(self, target: Tensor, weights: Tensor) -> Chosen:
        left = torch.arange(0, target.shape[-1] - 1, 2, device=target.device).expand(len(target), -1)
        pair = _normalized(((weights.gather(-1, left) > 0) & (weights.gather(-1, left + 1) > 0)).to(target.dtype))
        points = torch.zeros_like(weights).scatter_add(-1, left, pair / 2).scatter_add(-1, left + 1, pair / 2)
        return Chosen(left, left + 1, pair, points)


@dataclass(frozen=True)
class BestWorst:
    """The response of largest and that of smallest target, as SPPO trains; a prompt whose targets tie is skipped.

    The choice depends on the labels, so that `Labelled` no longer has the exact step as its minimizer.
    """

    def choose(self, target: Tensor, weights: Tensor) -> Chosen:
        exists = weights > 0
        best = torch.where(exists, target, -torch.inf).argmax(-1, keepdim=True)
        worst = torch.where(exists, target, torch.inf).argmin(-1, keepdim=True)
        pair = (target.gather(-1, best) > target.gather(-1, worst)).to(target.dtype)
        points = torch.zeros_like(weights).scatter_add(-1, best, pair / 2).scatter_add(-1, worst, pair / 2)
        return Chosen(best, worst, pair, points, declared=True)


# ------------------------------------------------------------------------------------------------------- legality


def _only_payoff(stage: Stage) -> Payoff | None:
    return stage.payoffs[0][0] if len(stage.payoffs) == 1 else None


def _require_self_comparison(what: str, kind: str, stage: Stage, mend: str) -> None:
    only = _only_payoff(stage)
    if only is None or only.kind != kind or only.policy != stage.on:
        shown = ", ".join(f"{p.kind}({p.policy})" for p, _ in stage.payoffs) or "none"
        raise ValueError(
            f"{what} needs a stage with one payoff of kind '{kind}' about the policy that the responses come from;"
            f" stage '{stage.writes}' has {shown} on responses of '{stage.on}': {mend}"
        )


def _labels(stage: StageTensors, chosen: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    """log-ratios of both members of each pair and the probability that the left one won, (B, M) each."""
    if stage.preferred is None:
        raise ValueError("a loss on labelled pairs needs `preferred`, who beat whom, which this stage's data lacks")
    K = stage.target.shape[-1]
    won = stage.preferred.flatten(1).gather(-1, chosen.left * K + chosen.right)
    won = torch.ones_like(won) if chosen.declared else won
    return stage.log_ratio.gather(-1, chosen.left), stage.log_ratio.gather(-1, chosen.right), won


def _step(stage: StageTensors) -> float:
    if stage.step is None:
        raise ValueError("a loss on labelled pairs needs the weight of the stage's only payoff, `step`")
    return stage.step


def _expected(loss: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, won: Tensor) -> Tensor:
    """The expectation of a labelled loss over its label."""
    return won * loss(left, right) + (1 - won) * loss(right, left)


# ------------------------------------------------------------------------------------------------------ objectives


class Normalizer(Protocol):
    """What a pointwise target puts in the place of log Z."""

    @property
    def reads_log_importance(self) -> bool: ...

    def check(self, form: Form, stage: Stage) -> None:
        """Refuse a stage for which it is wrong."""
        ...

    def subtract(self, stage: StageTensors) -> Tensor:
        """What is subtracted from the centred targets, (B, 1)."""
        ...


@dataclass(frozen=True)
class Half:
    """SPPO's η/2 for log Z, which centred targets η (P̂ − ½) contain already; off by KL(π_t ‖ π_{t+1}).

    Legal only where E_base g = ½: for one win rate against the policy that is both ``on`` and the whole base.
    """

    reads_log_importance: ClassVar[bool] = False

    def check(self, form: Form, stage: Stage) -> None:
        mend = "use Pointwise(LogZ()) or Pairwise()"
        _require_self_comparison("the constant 1/2", "win", stage, mend)
        expressions = {s.writes for s in form.stages if not s.payoffs}
        if [name for name, _ in stage.base] != [stage.on] or stage.on in expressions:
            names = ", ".join(name for name, _ in stage.base)
            raise ValueError(
                f"the constant 1/2 needs a stage whose base is the policy that the responses come from, one that is no"
                f" mixture; stage '{stage.writes}' has base {names} on responses of '{stage.on}': {mend}"
            )

    def subtract(self, stage: StageTensors) -> Tensor:
        return torch.zeros_like(stage.target[:, :1])


@dataclass(frozen=True)
class LogZ:
    """log Z = log E_{y∼on} exp(log base(y) − log on(y) + target(y)), from the stage's own responses.

    Exact where all responses are enumerated; an estimate on K draws.
    """

    reads_log_importance: ClassVar[bool] = True

    def check(self, form: Form, stage: Stage) -> None:
        """Any stage with payoffs has a log Z."""

    def subtract(self, stage: StageTensors) -> Tensor:
        gain = stage.target if stage.log_importance is None else stage.target + stage.log_importance
        return log_partition(stage.weights.log(), torch.where(stage.weights > 0, gain, 0.0))[:, None]


@dataclass(frozen=True)
class Pointwise:
    """(log-ratio − (target − log Z))² on single responses: SPPO.

    Parameters
    ----------
    normalizer : Half or LogZ
    pairs : All, BestWorst or Iid
        Which responses: all K, or the members of the chosen pairs. With `BestWorst` the value is the mean over the
        two, as in SPPO's official code; the paper sums them.
    """

    normalizer: Normalizer = field(default_factory=Half)
    pairs: Pairs = field(default_factory=All)

    @property
    def reads_log_importance(self) -> bool:
        """As the normalizer does."""
        return self.normalizer.reads_log_importance

    def check(self, form: Form, stage: Stage) -> None:
        self.normalizer.check(form, stage)

    def losses(self, stage: StageTensors) -> Losses:
        target = stage.target - self.normalizer.subtract(stage)
        return pointwise_square(stage.log_ratio, target), self.pairs.choose(stage.target, stage.weights).points


@dataclass(frozen=True)
class Pairwise:
    """((lr − lr') − (target − target'))², in which log Z cancels: every rule."""

    pairs: Pairs = field(default_factory=All)
    reads_log_importance: ClassVar[bool] = False

    def check(self, form: Form, stage: Stage) -> None:
        """Any stage with payoffs will do."""

    def losses(self, stage: StageTensors) -> Losses:
        chosen = self.pairs.choose(stage.target, stage.weights)
        left, right = (stage.log_ratio.gather(-1, side) for side in (chosen.left, chosen.right))
        difference = stage.target.gather(-1, chosen.left) - stage.target.gather(-1, chosen.right)
        return pairwise_square(left, right, difference), chosen.weight


@dataclass(frozen=True)
class Labelled:
    """((lr_w − lr_l) − η/2)² on labelled pairs, the expectation taken over soft labels: ONPO, INPO, IPO."""

    pairs: Pairs = field(default_factory=All)
    reads_log_importance: ClassVar[bool] = False

    def check(self, form: Form, stage: Stage) -> None:
        _require_self_comparison("the labelled margin", "win", stage, "use Pairwise()")

    def losses(self, stage: StageTensors) -> Losses:
        chosen = self.pairs.choose(stage.target, stage.weights)
        margin = _step(stage) / 2
        values = _expected(lambda w, l: labelled_square(w, l, margin), *_labels(stage, chosen))  # noqa: E741
        return values, chosen.weight


@dataclass(frozen=True)
class Logistic:
    """−log σ((lr_w − lr_l)/b) on labelled pairs, b the weight of the reward: DPO with β = τ = 1/b."""

    pairs: Pairs = field(default_factory=All)
    reads_log_importance: ClassVar[bool] = False

    def check(self, form: Form, stage: Stage) -> None:
        _require_self_comparison("the logistic loss", "reward", stage, "use Pairwise() on estimated payoffs")

    def losses(self, stage: StageTensors) -> Losses:
        chosen = self.pairs.choose(stage.target, stage.weights)
        beta = 1 / _step(stage)
        values = _expected(lambda w, l: logistic(w, l, beta), *_labels(stage, chosen))  # noqa: E741
        return values, chosen.weight


@dataclass(frozen=True)
class SPACPractical:
    """SPAC's practical loss: labelled pairs of the data, and a critic term on responses that π_t generated.

    The stage's ``weights`` are those of the data's responses and ``generated`` those of the self-generated ones; both
    are averaged apart. The critic is merged into the loss (f = (1/η) log π/π_t), so that the stage has no targets.

    Parameters
    ----------
    lam_pref, lam_critic : float
        Weights of the two terms.
    smoothing : callable
        `nashpo.core.losses.log_sigmoid_term` or ``identity_term`` (unbounded below).
    on_pairs : bool
        Whether the data's own responses enter the critic term beside the generated ones, half of its weight each.
    """

    lam_pref: float = 1.0
    lam_critic: float = 1.0
    smoothing: Callable[[Tensor], Tensor] = log_sigmoid_term
    on_pairs: bool = False
    pairs: Pairs = field(default_factory=All)
    reads_log_importance: ClassVar[bool] = False

    def check(self, form: Form, stage: Stage) -> None:
        _require_self_comparison("SPAC's practical loss", "critic", stage, "use another objective")

    def losses(self, stage: StageTensors) -> Losses:
        if stage.generated is None:
            raise ValueError("SPAC's practical loss needs self-generated responses, which this stage's data lacks")
        chosen = self.pairs.choose(stage.target, stage.weights)
        own = _normalized(stage.generated)
        if self.on_pairs:
            own = _normalized(own + chosen.points)
        left, right, won = (x[:, :, None] for x in _labels(stage, chosen))
        ratio, beta = stage.log_ratio[:, None, :], 1 / _step(stage)

        def loss(winner: Tensor, loser: Tensor) -> Tensor:
            return spac_practical(winner, loser, ratio, beta, self.lam_pref, self.lam_critic, self.smoothing)

        values = _expected(loss, left, right, won)
        return values.flatten(1), (chosen.weight[:, :, None] * own[:, None, :]).flatten(1)


def reads_extremes(objective: Objective) -> bool:
    """Whether a loss reads nothing but the best and the worst response of each prompt.

    The losses on pairs do with `BestWorst`, and so does SPPO's with the constant for log Z. An estimated log Z is made
    of all responses, SPAC's loss reads the generated ones beside the pair, and what another class reads is not known.
    """
    if type(objective) is Pointwise:
        return type(objective.normalizer) is Half and type(objective.pairs) is BestWorst
    return type(objective) in (Pairwise, Labelled, Logistic) and type(getattr(objective, "pairs", None)) is BestWorst
