"""What a trainer reads: rows of encoded responses with what they earn, from columns of a data set or from answers.

Shapes: N rows with at most K responses each; numbers per response are (N, K) float64, win matrices (N, K, K).
`nashpo.llm.data` makes such data from columns; `PreferenceData.from_stage` makes them from a stage's answers.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nashpo.llm.responses import Responses, StageData

_REASONS = {
    "too_long": "longer than max_length or max_prompt_length",
    "unfinished": "with a response that has no end token",
    "identical": "with identical responses",
    "ties": "on which no response is better than another",
}
_NOTES = {
    "missing_eos": "responses without an end token",
    "boundary": "responses tokenized apart from their prompt",
    "truncated": "prompts cut on the left",
}


@dataclass(frozen=True)
class Report:
    """How many rows were read and kept, why the others were not, and what was counted on the way.

    Attributes
    ----------
    rows, kept : int
    dropped : mapping reason -> int
        ``too_long``, ``unfinished``, ``identical`` (chosen == rejected, or all K alike), ``ties``.
    seen : mapping -> int
        ``missing_eos`` (responses), ``boundary`` (responses), ``truncated`` (sequences).
    """

    rows: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{count} {_REASONS[reason]}" for reason, count in sorted(self.dropped.items())]
        notes = [f"{self.seen[name]} {text}" for name, text in _NOTES.items() if self.seen.get(name)]
        left_out = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{self.kept} of {self.rows} rows kept{left_out}" + (f"; {', '.join(notes)}" if notes else "")


class PreferenceData(Dataset):  # type: ignore[misc]  # torch is not typed here
    """Encoded rows with the values of one payoff, not yet weighted; an item is its place, which the trainer looks up.

    Attributes
    ----------
    responses : Responses
        Named by their place in the data that were given.
    values : (N, K)
        Centred win rates P̂ − ½. Of a pair without mean win rates: P(y ≻ the other) − ½, hence ±½ under a hard label,
        as SPPO's official code trains such pairs. `nashpo.llm.responses.StageData.from_pairs` holds the mean over the
        pair with the comparison with oneself, ±¼, whose difference within the pair is the margin η/2 of
        `nashpo.llm.objectives.Labelled`; a loss on targets, such as ``Pairwise``, has twice that margin here.
    preferred : (N, K, K) or None
    generated : (N, K) or None
        Weights of the self-generated responses, where these are told apart.
    samples : (N,) int
        K of a row whose win rates are means over its own K responses (self-comparison included), otherwise 0.
    best, worst : (N,) int
        The places of chosen and rejected, or of the largest and the smallest win rate.
    report : Report
    known : mapping policy -> (N, K)
        Log-probabilities of the responses in nats, where they were computed before.
    """

    def __init__(
        self,
        responses: Responses,
        values: Tensor,
        preferred: Tensor | None,
        generated: Tensor | None,
        samples: Tensor,
        best: Tensor,
        worst: Tensor,
        report: Report,
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.responses = responses
        self.values = values
        self.preferred = preferred
        self.generated = generated
        self.samples = samples
        self.best = best
        self.worst = worst
        self.report = report
        self.known = dict(known or {})

    @classmethod
    def from_stage(
        cls,
        stage: StageData,
        samples: Tensor | None = None,
        report: Report | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> "PreparedData":
        """Rows whose payoffs were answered and weighted before, of any number of payoffs.

        Parameters
        ----------
        stage : StageData
            Token ids, targets and labels are taken as they are. `StageData.from_answers` makes it.
        samples : (N,) int, optional
            K of a row whose win rates are means over its own K responses; default 0, none is.
        report : Report, optional
            Default: every row kept.
        known : mapping policy -> (N, K), optional
            Log-probabilities in nats, as `nashpo.llm.known.stage_logprobs` gives them.

        Raises
        ------
        ValueError
            Shapes other than (N, K), targets that are not finite, a row without responses, or no row.
        """
        return PreparedData(stage, samples, report, known)

    def with_known(self, known: Mapping[str, Tensor]) -> Self:
        """The same rows with log-probabilities of these policies, (N, K) each."""
        result = copy(self)
        result.known = {**self.known, **known}
        return result

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, place: int) -> int:
        return place

    def stage(self, step: float | None) -> StageData:
        """The rows as the data of a stage whose only payoff has weight ``step``.

        Raises
        ------
        ValueError
            If there is no such weight (several payoffs), or it is not positive.
        """
        if step is None or not step > 0:
            raise ValueError(f"the data hold one payoff of positive weight, not of {step}")
        return StageData(self.responses, step * self.values, self.preferred, self.generated, step)

    def lengths(self, places: Sequence[int]) -> list[int]:
        """Tokens of each response that are scored, in the order of ``responses.rows``."""
        return [sum(sequence.mask) for sequence in self.responses.rows(places)]

    def tokens(self, places: Sequence[int]) -> int:
        """Tokens of prompts and responses."""
        return sum(len(sequence.ids) for sequence in self.responses.rows(places))


class PreparedData(PreferenceData):
    """Rows whose stage is made already; see `PreferenceData.from_stage`.

    ``values`` are the stage's targets Σ b g, weights included; ``best`` and ``worst`` are the responses of largest and
    smallest target among those of positive weight, of equal targets those that win most and least often.
    """

    def __init__(
        self,
        stage: StageData,
        samples: Tensor | None = None,
        report: Report | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        responses, weights = stage.responses, stage.responses.weights
        count = len(responses)
        if not count:
            raise ValueError("the stage's data have no rows")
        for name, found in (("target", stage.target), ("generated", stage.generated)):
            if found is not None and found.shape != weights.shape:
                raise ValueError(f"{name} is {tuple(found.shape)} for responses {tuple(weights.shape)}: give (N, K)")
        exists = weights > 0
        if not bool(exists.any(-1).all()):
            row = int((~exists.any(-1)).nonzero()[0])
            raise ValueError(f"row {responses.names[row]} has no response of positive weight: leave it out")
        if not bool(stage.target[exists].isfinite().all()):
            row = int((~stage.target.isfinite() & exists).any(-1).nonzero()[0])
            shown = stage.target[row].tolist()
            raise ValueError(f"row {responses.names[row]} has a target that is not finite: {shown}")
        if samples is not None and samples.shape != (count,):
            raise ValueError(f"samples is {tuple(samples.shape)} for {count} rows: give one number K per row")
        best, worst = _extremes(stage, exists)
        super().__init__(
            responses,
            stage.target,
            stage.preferred,
            stage.generated,
            torch.zeros(count, dtype=torch.long) if samples is None else samples.long(),
            best,
            worst,
            Report(count, count) if report is None else report,
            known,
        )
        # What a missing response holds is never read, and 0 · inf would be no number.
        self._stage = replace(stage, target=torch.where(exists, stage.target, 0.0))

    def stage(self, step: float | None) -> StageData:
        """The stage that was given.

        Raises
        ------
        ValueError
            If its payoff was weighted otherwise than with ``step``.
        """
        mine = self._stage.step
        if (mine is None) != (step is None) or (
            mine is not None and step is not None and not math.isclose(mine, step, rel_tol=1e-9)
        ):
            raise ValueError(
                f"the data were prepared for {_weighted(mine)}, but the stage that is trained has {_weighted(step)}"
            )
        return self._stage

    def extremes(self) -> "PreparedData":
        """The same rows with ``best`` and ``worst`` alone, for a loss that reads no other response.

        Which losses do is said by `nashpo.llm.objectives.reads_extremes`: loss, gradient and the metrics of chosen and
        rejected are unchanged. The two weigh ½ each; one that is both, where nothing tells responses apart, weighs 1.
        """
        pairs = list(zip(self.best.tolist(), self.worst.tolist(), strict=True))
        places = [sorted({best, worst}) for best, worst in pairs]
        weights = [torch.full((len(row),), 1 / len(row), dtype=torch.float64) for row in places]
        stage = self._stage.picked(places, weights)
        grid = torch.tensor([(row[0], row[-1]) for row in places])[:, : stage.target.shape[1]]
        exists = stage.responses.weights > 0
        known = {name: torch.where(exists, x.gather(1, grid), 0.0) for name, x in self.known.items()}
        found = PreparedData(stage, self.samples, self.report, known)
        # Of rows that tie they were told by who wins among all K, which two of them may not show.
        found.best = torch.tensor([row.index(best) for row, (best, _) in zip(places, pairs, strict=True)])
        found.worst = torch.tensor([row.index(worst) for row, (_, worst) in zip(places, pairs, strict=True)])
        return found


def _weighted(step: float | None) -> str:
    return "several payoffs" if step is None else f"one payoff of weight {step:g}"


def _extremes(stage: StageData, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the best and the worst response of each row, (N,) each."""
    score = stage.target
    if stage.preferred is not None:
        high = torch.where(exists, score, -torch.inf).amax(-1)
        low = torch.where(exists, score, torch.inf).amin(-1)
        # Where no target tells, as for a critic: who wins most often.
        wins = (stage.preferred * stage.responses.weights[:, None, :]).sum(-1)
        score = torch.where((high == low)[:, None], wins, score)
    best = torch.where(exists, score, -torch.inf).argmax(-1)
    return best, torch.where(exists, score, torch.inf).argmin(-1)
