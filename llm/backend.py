"""The fitted backend: a rule's form run on a language model by `nashpo.core.selfplay`, one fit per stage.

Handles are JSON: a policy is its name in a store, a geometric mixture is ``{"mixture": [[a, name], ...]}``, an average
is the list of its iterates, an answer is its key. Nothing here knows any rule.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import State, Term
from nashpo.core.store import replace_file
from nashpo.llm.fit import FitReport, Settings, fit, policy_logprobs
from nashpo.llm.mixture import Parts, log_mass, token_wise_distance
from nashpo.llm.objectives import Objective, Pairwise
from nashpo.llm.policies import Policies, Policy, factors
from nashpo.llm.responses import Answer, Responses, Scored, StageData
from nashpo.llm.sampling import Sampler, derived_seed

log = logging.getLogger(__name__)


class Feedback(Protocol):
    """What answers payoffs of one kind."""

    def __call__(self, payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        """The payoff on responses ``on``; ``about`` are those of its policy, the very same where ``own``."""
        ...


Compare = Callable[[Responses, Responses], Tensor]
"""P(y ≻ y') of responses (B, K) to the same prompts against (B, K') others: (B, K, K'), in [0, 1]."""


def win_rates(compare: Compare) -> Feedback:
    """Win rates P̂(y ≻ π) − ½ as means of comparisons with π's responses.

    Among K responses of one policy the comparison with oneself, ½, is counted, as in SPPO: the step is then
    η (K − 1)/K in expectation.
    """

    def answer(payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        wins = compare(on, about).double()
        if bool(((wins < 0) | (wins > 1)).any()) or bool(wins.isnan().any()):
            raise ValueError("a judge answered with win probabilities outside [0, 1]")
        values = (wins * about.weights[:, None, :]).sum(-1) - 0.5
        return Answer(on, torch.where(on.weights > 0, values, 0.0), wins if own else None)

    return answer


def offline_pairs(chosen: Sequence[Scored], rejected: Sequence[Scored]) -> Feedback:
    """A critic for `nashpo.llm.objectives.SPACPractical`: one labelled pair per prompt beside self-generated responses.

    The practical loss contains the critic, so that the payoff itself has no values. The pair comes first among the
    responses of a prompt, the winner before the loser.

    Raises
    ------
    ValueError
        When asked about other prompts than there are pairs.
    """

    def answer(payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        if len(on) != len(chosen) or len(chosen) != len(rejected):
            raise ValueError(
                f"{len(on)} prompts, {len(chosen)} chosen and {len(rejected)} rejected responses: give one pair each"
            )
        rows = [(w, l, *row) for w, l, row in zip(chosen, rejected, on.sequences)]  # noqa: E741
        generated = torch.nn.functional.pad(on.weights, (2, 0))
        data = torch.zeros_like(generated)
        data[:, :2] = 0.5
        preferred = torch.full((*data.shape, data.shape[1]), 0.5, dtype=torch.float64)
        preferred[:, 0, 1], preferred[:, 1, 0] = 1.0, 0.0
        both = Responses(tuple(rows), data, False, on.names)
        return Answer(both, torch.zeros_like(data), preferred, generated)

    return answer


class AnswerFolder(MutableMapping[str, Answer]):
    """Answers as JSON files, each whole or not there at all."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def __getitem__(self, key: str) -> Answer:
        try:
            return Answer.from_json(json.loads(self._path(key).read_bytes()))
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, answer: Answer) -> None:
        replace_file(self._path(key), json.dumps(answer.to_json()).encode())

    def __delitem__(self, key: str) -> None:
        self._path(key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (file.stem for file in self.folder.glob("*.json"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class FittedBackend:
    """Stages fitted to samples of a language model.

    Parameters
    ----------
    policies : Policies
        Holds the origins and everything that is fitted.
    prompts : sequence of token id sequences
    sampler : Sampler
    feedback : mapping kind -> Feedback
        E.g. ``{"win": win_rates(compare)}``.
    objective : Objective
    settings : Settings
    seed : int
        Of responses and batches, together with each piece of work's key.
    answers : mutable mapping, optional
        Where answers are kept, an `AnswerFolder` for instance; in memory by default.

    Attributes
    ----------
    reports : dict key -> FitReport
        Of the fits that were made by this object.
    mixture_distances : dict handle as JSON -> (B,)
        Total variation between the token-wise mixture that responses were drawn from and the sequence-level one of the
        theory, per prompt, estimated on the draws.
    """

    def __init__(
        self,
        policies: Policies,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        feedback: Mapping[str, Feedback],
        objective: Objective | None = None,
        settings: Settings | None = None,
        seed: int = 0,
        answers: MutableMapping[str, Answer] | None = None,
    ) -> None:
        self.policies = policies
        self.prompts = prompts
        self.sampler = sampler
        self.feedback = feedback
        self.objective = objective if objective is not None else Pairwise()
        self.settings = settings if settings is not None else Settings()
        self.seed = seed
        self.answers: MutableMapping[str, Answer] = {} if answers is None else answers
        self.reports: dict[str, FitReport] = {}
        self.mixture_distances: dict[str, Tensor] = {}
        self._responses: dict[str, Responses] = {}

    def check(self, form: Form) -> None:
        """Refuse payoffs that nobody answers, objectives that do not fit, and origins that were not given."""
        for stage in form.stages:
            for payoff, _ in stage.payoffs:
                if payoff.kind not in self.feedback:
                    known = ", ".join(self.feedback) or "none"
                    raise ValueError(f"no feedback of kind '{payoff.kind}', which this rule needs, was given ({known})")
            if stage.payoffs:
                self.objective.check(form, stage)
        for name, origin in form.slots:
            if origin is not None and origin not in self.policies:
                raise ValueError(f"slot '{name}' begins as the {origin} policy, which was not given")

    def start(self, origin: str) -> Policy:
        """The origin's own name."""
        return origin

    def ask(self, key: str, payoff: Payoff, policy: Policy | list[Policy], on: Policy) -> str:
        """Responses of both policies, and the feedback on them."""
        if key not in self.answers:
            own = policy == on
            responses = self.responses(on)
            about = responses if own else self.responses(policy)
            self.answers[key] = self.feedback[payoff.kind](payoff, responses, about, own)
        return key

    def responses(self, policy: Policy | list[Policy]) -> Responses:
        """The responses that belong to a policy, the union of its iterates' for an average."""
        if isinstance(policy, list):
            return Responses.united([self.responses(one) for one in policy])
        name = json.dumps(policy)
        if name not in self._responses:
            parts = self.parts(policy)
            drawn = self.sampler(parts, self.prompts, derived_seed(self.seed, name))
            if len(parts) > 1 and not drawn.enumerated:
                distance = token_wise_distance(self._log_masses(parts, drawn), drawn.weights)
                log.info("token-wise mixture: %.3g from the sequence-level one (mean TV estimate)", distance.mean())
                self.mixture_distances[name] = distance
            self._responses[name] = drawn
        return self._responses[name]

    @staticmethod
    def _log_masses(parts: Parts, responses: Responses) -> Tensor:
        """log w of every response, (B, K)."""
        prompts = list(range(len(responses)))
        return responses.grid(log_mass(parts, responses.rows(prompts)), prompts)

    def parts(self, policy: Policy) -> Parts:
        """The policy as a geometric mixture of stored ones."""
        return [(a, partial(self.policies.use, name)) for a, name in factors([(1.0, policy)])]

    def project(self, key: str, base: list[tuple[float, Policy]], terms: list[Term], on: Policy | None) -> Policy:
        """Fit the stage, from the weights of the base policy of largest coefficient; a mixture needs no fit."""
        product = factors(base)
        if not terms:
            return {"mixture": [[a, name] for a, name in product]}
        if key in self.policies:
            return key
        data = StageData.from_answers([(term.weight, self.answers[term.answer]) for term in terms])
        scored = [(a, self._logprobs(name, data.responses)) for a, name in product]
        started = max(range(len(product)), key=lambda i: product[i][0])
        importance = self._log_importance(product, scored, data.responses, on)
        seed = derived_seed(self.seed, key)
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)  # a fresh adapter draws its weights
            with self.policies.train(product[started][1]) as model:
                self.reports[key] = fit(
                    model,
                    data,
                    scored,
                    self.objective,
                    self.settings,
                    seed,
                    started=started,
                    log_importance=importance,
                )
                self.policies.save(key, model)
        return key

    def _logprobs(self, name: str, responses: Responses) -> Tensor:
        with self.policies.use(name) as model:
            return policy_logprobs(model, responses, self.settings.layout, self.settings.micro)

    def _log_importance(
        self,
        base: tuple[tuple[float, str], ...],
        scored: list[tuple[float, Tensor]],
        responses: Responses,
        on: Policy | None,
    ) -> Tensor | None:
        """Σ a log π_i − log π_on, or None where the two are one or nothing reads it.

        Draws of a mixture are token-wise ones, whose log-probability is Σ a log π_i − log w.
        """
        product = factors([(1.0, on)]) if on is not None else base
        if not self.objective.reads_log_importance or (len(product) == 1 and product == base):
            return None
        log_base = sum((a * logprobs for a, logprobs in scored[1:]), scored[0][0] * scored[0][1])
        if responses.enumerated:
            return log_base - responses.weights.log()
        log_on = sum(a * self._logprobs(name, responses) for a, name in product)
        if len(product) > 1 and on is not None:
            log_on = log_on - self._log_masses(self.parts(on), responses)
        return log_base - log_on

    def mix(self, key: str, average: list[Policy] | None, policy: Policy, count: int) -> list[Policy]:
        """The list of the iterates."""
        return [*(average or []), policy]

    def forget(self, state: State) -> None:
        """Delete the policies, answers and responses that the state does not hold."""
        handles = [version.handle for version in state.slots.values() if version is not None]
        handles += state.average.handle if state.average is not None else []
        self.policies.keep({name for _, name in factors([(1.0, handle) for handle in handles])})
        for key in set(self.answers) - set(state.answers.values()):
            del self.answers[key]
        alive = {json.dumps(handle) for handle in handles}
        self._responses = {name: found for name, found in self._responses.items() if name in alive}
