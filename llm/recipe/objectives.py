"""The ``objective`` of a recipe: which loss a stage is fitted with. ``build`` imports torch, the settings do not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nashpo.core.rules import Rule
    from nashpo.llm.objectives import Objective
    from nashpo.llm.stages import Job

PairsName = Literal["all", "iid", "best_worst"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """Base of every setting of an objective."""

    def build(self, rule: "Rule", job: "Job") -> "Objective":
        """The objective for one stage.

        Raises
        ------
        ValueError
            If the stage is none that this loss is right for.
        """
        found = self._objective()
        found.check(job.form, job.stage)
        return found

    def _objective(self) -> "Objective":
        raise NotImplementedError


@dataclass(frozen=True)
class Default(ObjectiveSpec):
    """The loss of the rule's paper; ``pairs`` by default as the paper's (SPPO best and worst, others all)."""

    pairs: PairsName | None = None

    def build(self, rule: "Rule", job: "Job") -> "Objective":
        """The objective for one stage."""
        from nashpo.llm.stages import objective

        return objective(rule, job, self.pairs)


@dataclass(frozen=True)
class PointwiseSpec(ObjectiveSpec):
    """(log-ratio − (target − log Z))² on single responses, log Z as SPPO's constant ``half`` or estimated."""

    pairs: PairsName = "all"
    normalizer: Literal["half", "log_z"] = "half"

    def _objective(self) -> "Objective":
        from nashpo.llm.objectives import Half, LogZ, Pointwise
        from nashpo.llm.stages import PAIRS

        return Pointwise(Half() if self.normalizer == "half" else LogZ(), PAIRS[self.pairs])


@dataclass(frozen=True)
class PairwiseSpec(ObjectiveSpec):
    """The difference of two log-ratios against that of their targets: every rule."""

    pairs: PairsName = "all"

    def _objective(self) -> "Objective":
        from nashpo.llm.objectives import Pairwise
        from nashpo.llm.stages import PAIRS

        return Pairwise(PAIRS[self.pairs])


@dataclass(frozen=True)
class LabelledSpec(ObjectiveSpec):
    """The margin η/2 on labelled pairs: ONPO, INPO, IPO."""

    pairs: PairsName = "all"

    def _objective(self) -> "Objective":
        from nashpo.llm.objectives import Labelled
        from nashpo.llm.stages import PAIRS

        return Labelled(PAIRS[self.pairs])


@dataclass(frozen=True)
class LogisticSpec(ObjectiveSpec):
    """The logistic loss on labelled pairs: DPO."""

    pairs: PairsName = "all"

    def _objective(self) -> "Objective":
        from nashpo.llm.objectives import Logistic
        from nashpo.llm.stages import PAIRS

        return Logistic(PAIRS[self.pairs])


@dataclass(frozen=True)
class SPACSpec(ObjectiveSpec):
    """SPAC's practical loss: labelled pairs of the data and a smoothed critic term on self-generated responses."""

    lam_pref: float = 1.0
    lam_critic: float = 1.0
    smoothing: Literal["log_sigmoid", "identity"] = "log_sigmoid"
    on_pairs: bool = False
    pairs: PairsName = "all"

    def _objective(self) -> "Objective":
        from nashpo.core.losses import identity_term, log_sigmoid_term
        from nashpo.llm.objectives import SPACPractical
        from nashpo.llm.stages import PAIRS

        smoothing = {"log_sigmoid": log_sigmoid_term, "identity": identity_term}[self.smoothing]
        return SPACPractical(self.lam_pref, self.lam_critic, smoothing, self.on_pairs, PAIRS[self.pairs])


def check(spec: ObjectiveSpec, rule: "Rule", iterations: int) -> None:
    """Refuse a loss that is wrong for a stage of the rule at one of its iterations.

    Raises
    ------
    ValueError
        Names the stage and another loss.
    """
    from nashpo.llm.stages import Job

    form = rule.form()
    for t in range(iterations):
        for stage in form.stages:
            if payoffs := tuple((b, payoff) for payoff, b in stage.payoffs_at(t)):
                try:
                    spec.build(rule, Job(form, stage, (), payoffs))
                except ValueError as error:
                    raise ValueError(f"objective: {error}") from None


def only_extremes(spec: ObjectiveSpec, rule: "Rule", iterations: int) -> bool:
    """Whether the losses of all stages read nothing but the best and the worst response.

    Raises
    ------
    ValueError
        If a loss is wrong for a stage.
    """
    from nashpo.llm.objectives import reads_extremes
    from nashpo.llm.stages import Job

    form = rule.form()
    return all(
        reads_extremes(spec.build(rule, Job(form, stage, (), payoffs)))
        for t in range(iterations)
        for stage in form.stages
        if (payoffs := tuple((b, payoff) for payoff, b in stage.payoffs_at(t)))
    )


OBJECTIVES: dict[str, type[ObjectiveSpec]] = {
    "default": Default,
    "pointwise": PointwiseSpec,
    "pairwise": PairwiseSpec,
    "labelled": LabelledSpec,
    "logistic": LogisticSpec,
    "spac": SPACSpec,
}
"""Settings by their name in ``objective: {name: NAME, ...}``."""
