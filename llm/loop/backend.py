"""Self-play on a language model as a backend of `nashpo.core.selfplay`: its operations are phases in a run's folder.

``ask`` samples and judges, ``project`` scores and trains; each finds what it did before by its folder and key. Handles
are JSON: a policy is its folder's name within the run (or an origin), a geometric mixture is ``{"mixture": [[a, name],
…]}``, an average is the list of its iterates, an answer says where its samples and judgements lie. Nothing here knows
any rule.

Shapes: B prompts with K responses each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nashpo.core.rules.form import CURRENT, Form, Payoff
from nashpo.core.selfplay import State, Term
from nashpo.llm.backend import offline_pairs
from nashpo.llm.conversation.levels import Level
from nashpo.llm.engines.engine import Engine
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.judge import Judge
from nashpo.llm.judges.matrix import Judged
from nashpo.llm.loop.distinct import distinct, merges
from nashpo.llm.loop.judging import judge, win_matrices
from nashpo.llm.loop.phase import key_of
from nashpo.llm.loop.policies import RunPolicies, Source
from nashpo.llm.loop.sampling import Progress, Samples, sample
from nashpo.llm.loop.training import Fitting, base_logprobs, train
from nashpo.llm.objectives import reads_extremes
from nashpo.llm.policies import Policy, factors
from nashpo.llm.preferences import PreferenceData, Report
from nashpo.llm.prompts import Prompt
from nashpo.llm.responses import Answer, Responses, Scored, StageData
from nashpo.llm.sampling import derived_seed
from nashpo.llm.stages import Job

BEHAVIOR = "behavior"


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs of a fixed data set, B of them: the chosen response before the rejected one."""

    chosen: tuple[Scored, ...]
    rejected: tuple[Scored, ...]
    data: PreferenceData


@dataclass(frozen=True)
class Work:
    """What one iteration works on.

    Attributes
    ----------
    prompts : tuple of Prompt
    pairs : Pairs, optional
        One per prompt.
    """

    prompts: tuple[Prompt, ...]
    pairs: Pairs | None = None


@dataclass
class RunBackend:
    """The phases of a run.

    Attributes
    ----------
    run : path
    form : Form
    policies : RunPolicies
    work : callable
        From t to what iteration t works on.
    fitting : Fitting
    engine : Engine, optional
        None where a rule samples nothing.
    judge : Judge, optional
        None where a rule asks nothing.
    cache : Cache, optional
    level : Level
        What of the samples a stage is fitted to.
    shard : int
        Prompts per file of samples.
    seed : int
    max_abstained : float
        Largest share of an iteration's rows (prompts, or states) that may be left out because the judge abstained.
    progress : callable
        Of (phase, done, of how many).
    t : int
        The iteration that is under way.
    say : callable
        Gets a line for people.
    """

    run: Path
    form: Form
    policies: RunPolicies
    work: Callable[[int], Work]
    fitting: Fitting
    engine: Engine | None
    judge: Judge | None
    cache: Cache | None
    level: Level
    shard: int
    seed: int
    max_abstained: float
    progress: Progress
    t: int = 0
    say: Callable[[str], None] = lambda text: None
    _told: set[Path] = field(default_factory=set)
    _stage: int = 0
    _places: dict[tuple[str, str], Path] = field(default_factory=dict)
    _answers: dict[str, Answer] = field(default_factory=dict)
    _first: tuple[str, Samples, list[Judged]] | None = None
    _scored: list[tuple[Path, Responses]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------- the iteration

    def at(self, t: int) -> None:
        """Begin iteration t: the calls that follow come in the order of the form."""
        self.t = t
        self._first = None
        self._stage = 0
        self._places.clear()
        self._answers.clear()
        self._scored.clear()

    @property
    def folder(self) -> Path:
        """Of the iteration that is under way; the first is 001."""
        return self.run / f"iterations/{self.t + 1:03d}"

    def _place(self, phase: str, what: Any, name: str) -> Path:
        """The phase's own folder for the first piece of work of an iteration, one within it for each further piece."""
        key = (phase, json.dumps(what))
        if key not in self._places:
            taken = set(self._places.values())
            place, number = self.folder / phase, 1
            while place in taken:
                place = self.folder / phase / (name if number == 1 else f"{name}-{number}")
                number += 1
            self._places[key] = place
        return self._places[key]

    # ------------------------------------------------------------------------------------------------ the operations

    def check(self, form: Form) -> None:
        """Refuse a form whose payoffs nobody can answer."""
        for stage in form.stages:
            for payoff, _ in stage.payoffs:
                if payoff.kind == "critic" or stage.on == BEHAVIOR or self._origin(stage.on) == BEHAVIOR:
                    if self.work(0).pairs is None:
                        raise ValueError(f"the rule learns from labelled pairs ({payoff.kind}): give the recipe pairs")
                    if payoff.kind != "critic":
                        continue
                elif payoff.kind not in ("win", "reward"):
                    raise ValueError(f"nobody answers payoffs of kind '{payoff.kind}' here: win, reward and critic are")
                elif self.judge is None:
                    raise ValueError(f"the rule asks for {payoff.kind}({payoff.policy}): give the recipe a judge")
                if self.engine is None:
                    raise ValueError("the rule needs responses of its own policies: give the recipe a sampling section")

    def _origin(self, slot: str | None) -> str | None:
        return dict(self.form.slots).get(slot or "")

    def start(self, origin: str) -> Policy:
        """The origin's own name."""
        return origin

    def ask(self, key: str, payoff: Payoff, policy: Policy | list[Policy], on: Policy) -> dict[str, Any]:
        """Samples of both policies, and who beats whom among them."""
        handle = {"iteration": self.t, "kind": payoff.kind, "about": policy, "on": on}
        self._answers[json.dumps(handle)] = self._answered(payoff.kind, policy, on)
        return handle

    def _answer(self, handle: dict[str, Any]) -> Answer:
        """An answer that was given before, in this iteration or an earlier one, in this process or not."""
        name = json.dumps(handle)
        if name not in self._answers:
            if handle["iteration"] != self.t:
                raise ValueError(
                    f"an answer of iteration {handle['iteration'] + 1} is used again in {self.t + 1}, on other prompts:"
                    " the rule cannot run with prompts split over the iterations"
                )
            self._answers[name] = self._answered(handle["kind"], handle["about"], handle["on"])
        return self._answers[name]

    def _answered(self, kind: str, about: Policy | list[Policy], on: Policy) -> Answer:
        work = self.work(self.t)
        if on == BEHAVIOR:
            assert work.pairs is not None
            data = work.pairs.data
            return Answer(data.responses, data.values, data.preferred)
        samples = self.samples(on)
        if kind == "critic":
            assert work.pairs is not None
            return _with_pairs(work.pairs, self.level.responses(work.prompts, samples))
        own = about == on
        others = None if own else self._united(about)
        assert self.judge is not None
        place = self._place("judgements", [about, on], "against-" + _short(about))
        if torch.cuda.is_available():
            self.policies.release()
        ranks = self.fitting.ranks
        judged = judge(place, self.judge, work.prompts, samples, others, self.cache, self.progress, ranks)
        if torch.cuda.is_available() and getattr(self.judge, "model", None) is not None:
            self.judge.close()  # it loads its weights again when it is asked again
        if own and self._first is None:
            self._first = (_short(about), samples, judged)
        return self.level.answer(work.prompts, samples, win_matrices(judged), own)

    def trained_on(self) -> tuple[str, Samples, list[Judged]] | None:
        """The first policy of the iteration whose responses were compared among themselves: its name, they, who won."""
        return self._first

    def samples(self, policy: Policy) -> Samples:
        """Responses of one policy to the iteration's prompts."""
        assert self.engine is not None
        place = self._place("samples", policy, _short(policy))
        source = Source(policy if isinstance(policy, str) else "mixture", factors([(1.0, policy)]), self.policies)
        prompts = self.work(self.t).prompts
        # The same policy may be asked again in a later iteration (an average's), for other responses.
        seed = derived_seed(self.seed, f"samples/{self.t}")
        ranks = self.fitting.ranks
        found, counts = sample(place, self.engine, source, prompts, self.shard, seed, self.progress, ranks)
        if place not in self._told and (line := _ended_early(counts)):
            self.say(f"iteration {self.t + 1}, {place.relative_to(self.folder)}: {line}")
        self._told.add(place)
        return found

    def _united(self, policy: Policy | list[Policy]) -> Samples:
        """The union of the iterates' responses for an average."""
        parts = [self.samples(one) for one in (policy if isinstance(policy, list) else [policy])]
        return [tuple(c for part in parts for c in part[b]) for b in range(len(parts[0]))]

    def project(self, key: str, base: list[tuple[float, Policy]], terms: list[Term], on: Policy | None) -> Policy:
        """Score and train the stage, from the base policy of largest coefficient; a mixture needs neither."""
        index, self._stage = self._stage, self._stage + 1
        product = factors(base)
        if not terms:
            return {"mixture": [[a, name] for a, name in product]}
        writes = self.form.stages[index].writes
        name = f"iterations/{self.t + 1:03d}/{'model' if writes == CURRENT else writes}"
        job = Job.of(self.form, index, product, terms)
        answers = [(term.weight, self._answer(term.answer)) for term in terms]
        stage, report, samples = self._usable(answers, own=len(terms) == 1 and terms[0].payoff.kind != "critic")
        fitted = self.fitting.objective(job)
        data = PreferenceData.from_stage(distinct(stage) if merges(fitted) else stage, samples, report)
        read: list[str] = []
        if reads_extremes(fitted):
            data, read = data.extremes(), ["extremes"]
        scored = dict.fromkeys([job.start, *(policy for _, policy in product), "reference"])
        place = self._place("logprobs", writes, writes)
        known = base_logprobs(
            place,
            key_of("logprobs", key, list(scored), *read),
            self.policies,
            list(scored),
            data.responses,
            self.fitting,
            self.progress,
            [folder for folder, found in self._scored if found.sequences == data.responses.sequences],
        )
        self._scored.append((place, data.responses))
        data = data.with_known(known)
        self.policies.release()
        self.progress(f"train {writes}", 0, 0)
        train(self.folder / "train" / writes, self.run / name, key, self.policies, job, data, self.fitting)
        return name

    def _usable(self, answers: Sequence[tuple[float, Answer]], own: bool) -> tuple[StageData, Report, Tensor]:
        """The stage's data without the rows on which a comparison is missing or that are too long."""
        whole = StageData.from_answers(answers)
        limit = self.fitting.training.get("max_length", 1024)
        judged = torch.where(whole.responses.weights > 0, whole.target, 0.0).isfinite().all(-1)
        if whole.preferred is not None:  # of a later state's answers it is no part of their payoffs
            judged &= whole.preferred.isfinite().flatten(1).all(-1)
        short = torch.tensor(
            [limit is None or max(len(s.ids) for s in row) <= limit for row in whole.responses.sequences]
        )
        different = torch.tensor([len(set(row)) > 1 for row in whole.responses.sequences])
        abstained = int((~judged).sum())
        if abstained > self.max_abstained * len(judged):
            raise ValueError(
                f"the judge abstained on {abstained} of {len(judged)} {self.level.rows}, more than max_abstained ="
                f" {self.max_abstained:g}: look at {self.folder / 'judgements'}, mend the judge, delete that folder and"
                " run the same command again"
            )
        keep = [b for b, fine in enumerate((judged & short & different).tolist()) if fine]
        dropped = {"too_long": int((~short).sum()), "identical": int((short & ~different).sum())}
        report = Report(len(judged), len(keep), {name: n for name, n in dropped.items() if n}, {})
        if not keep:
            raise ValueError(
                f"no {self.level.rows} of iteration {self.t + 1} are left to train on: {report}, {abstained} unjudged"
            )
        stage = _rows(whole, keep)
        compared = self.level.compared(stage.responses, self.work(self.t).prompts)
        return stage, report, compared if own else torch.zeros_like(compared)

    def mix(self, key: str, average: list[Policy] | None, policy: Policy, count: int) -> list[Policy]:
        """The list of the iterates."""
        return [*(average or []), policy]

    def forget(self, state: State) -> None:
        """The next iteration begins; which weights are deleted is the run's business."""
        self.at(state.t)


def _short(policy: Policy | list[Policy]) -> str:
    if isinstance(policy, list):
        return "average"
    return policy.rpartition("/")[2] if isinstance(policy, str) else "mixture"


def _ended_early(counts: Mapping[str, Any]) -> str:
    """What people should know where most conversations ended after one answer; empty where they went on."""
    first = counts.get("answers", [0])[0]
    followed = sum(counts.get("states", [])[1:2])
    if 2 * followed >= first:
        return ""
    were = f"{followed} of {first} first answers were" if followed else f"none of {first} first answers was"
    return f"{were} followed by a second one: the other side ended the conversation, or another answer had no room"


def _with_pairs(pairs: Pairs, responses: Responses) -> Answer:
    """A critic's answer: one labelled pair per prompt beside the self-generated responses; see `offline_pairs`."""
    return offline_pairs(pairs.chosen, pairs.rejected)(Payoff("critic", CURRENT), responses, responses, True)


def _rows(stage: StageData, keep: Sequence[int]) -> StageData:
    """Some of the prompts."""
    if len(keep) == len(stage.responses):
        return stage
    rows = list(keep)
    old = stage.responses
    responses = Responses(
        tuple(old.sequences[b] for b in rows), old.weights[rows], old.enumerated, tuple(old.names[b] for b in rows)
    )
    preferred, generated = (None if x is None else x[rows] for x in (stage.preferred, stage.generated))
    return StageData(responses, stage.target[rows], preferred, generated, stage.step)


def alive(state: State, averaged: bool) -> set[str]:
    """The names of the policies that a state still needs."""
    handles = [version.handle for version in state.slots.values() if version is not None]
    if averaged and state.average is not None:
        handles += state.average.handle
    return {name for _, name in factors([(1.0, handle) for handle in handles])}
