"""The evaluation phase: the new iterate against the reference and the iterate before, on held-out prompts.

Shapes: B held-out prompts with K responses each; log-probabilities (B, K) float64 in nats.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashpo.llm.conversation.levels import Trajectory
from nashpo.llm.engines.engine import Engine
from nashpo.llm.evaluation import PolicySamples, summary
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.judge import Judge
from nashpo.llm.judges.matrix import Judged
from nashpo.llm.loop.judging import judge
from nashpo.llm.loop.phase import Phase, key_of, write_json
from nashpo.llm.loop.policies import RunPolicies, Source
from nashpo.llm.loop.sampling import Progress, Samples, sample
from nashpo.llm.loop.training import Fitting, base_logprobs
from nashpo.llm.prompts import Prompt
from nashpo.llm.sampling import derived_seed

RESULTS = "results.json"
Exact = Callable[[Sequence[str]], Mapping[str, Any]]
"""From the names of the iterates so far, π_1 first, to what is known exactly about the last of them."""


@dataclass(frozen=True)
class Evaluator:
    """Everything that an evaluation needs.

    Attributes
    ----------
    prompts : tuple of Prompt
        Held out; may be empty, then only the training samples are described.
    policies : RunPolicies
    engine : Engine, optional
    judge : Judge, optional
    cache : Cache, optional
    fitting : Fitting
    shard, seed : int
    exact : Exact, optional
    progress : Progress
    """

    prompts: tuple[Prompt, ...]
    policies: RunPolicies
    engine: Engine | None
    judge: Judge | None
    cache: Cache | None
    fitting: Fitting
    shard: int
    seed: int
    exact: Exact | None
    progress: Progress

    def __call__(
        self,
        folder: Path,
        iteration: int,
        iterates: Sequence[str],
        against: Mapping[str, str],
        training: tuple[str, Samples, Sequence[Judged]] | None,
    ) -> dict[str, Any]:
        """Evaluate the last of the iterates.

        Parameters
        ----------
        folder : path
        iteration : int
            Counted from 1.
        iterates : sequence of str
            π_1 … π_{t+1}.
        against : mapping name -> policy
            ``reference`` and ``previous``.
        training : (policy, samples, judgements), optional
            What the iteration was trained on.
        """
        key = key_of("evaluation", self.seed, iterates, dict(against), [p.key for p in self.prompts])
        ranks = self.fitting.ranks
        phase = Phase(folder, "evaluation", key, ranks)
        if not phase.committed:
            self.progress("evaluation", 0, 0)
            phase.begin()
            found = self._found(folder, key, iteration, iterates, against, training)
            ranks.first(lambda: write_json(folder / RESULTS, found))
            phase.commit([RESULTS], counts={"prompts": len(self.prompts)})
        result: dict[str, Any] = json.loads((folder / RESULTS).read_bytes())
        return result

    def _found(
        self,
        folder: Path,
        key: str,
        iteration: int,
        iterates: Sequence[str],
        against: Mapping[str, str],
        training: tuple[str, Samples, Sequence[Judged]] | None,
    ) -> dict[str, Any]:
        current, samples, judged, kl = None, {}, {}, {}
        if self.prompts and self.engine is not None:
            current = self._sample(folder / "samples" / "current", iterates[-1], iteration)
            first: dict[Path, str] = {}  # the reference and the previous iterate may be one policy
            for name, policy in against.items():
                same = first.setdefault(self.policies.path(policy), name)
                if same == name:
                    samples[name] = self._sample(folder / "samples" / name, policy, iteration)
                    if self.judge is not None:
                        judged[name] = judge(
                            folder / "judgements" / name,
                            self.judge,
                            self.prompts,
                            current,
                            samples[name],
                            self.cache,
                            self.progress,
                            self.fitting.ranks,
                        )
                    continue
                samples[name] = samples[same]
                if same in judged:
                    judged[name] = judged[same]
            kl = self._divergences(folder / "logprobs", key, iterates[-1], against, current)
        return summary(
            iteration,
            [prompt.text for prompt in self.prompts] if current is not None else [],
            _described(current or []),
            {name: _described(found) for name, found in samples.items()},
            judged,
            None if training is None else (training[0], _described(training[1]), training[2]),
            kl,
            None if self.exact is None else self.exact(iterates),
            self.seed,
        )

    def _sample(self, folder: Path, policy: str, iteration: int) -> Samples:
        assert self.engine is not None
        source = Source(policy, ((1.0, policy),), self.policies)
        seed = derived_seed(self.seed, f"evaluation/{iteration}")
        ranks = self.fitting.ranks
        return sample(folder, self.engine, source, self.prompts, self.shard, seed, self.progress, ranks)[0]

    def _divergences(
        self, folder: Path, key: str, current: str, against: Mapping[str, str], samples: Samples
    ) -> dict[str, list[list[float]]]:
        responses = Trajectory().responses(self.prompts, samples)
        names = list(dict.fromkeys([current, *against.values()]))
        found = base_logprobs(folder, key, self.policies, names, responses, self.fitting, self.progress)
        counts = [len(row) for row in samples]
        rows = {name: (found[current] - found[policy]).tolist() for name, policy in against.items()}
        return {name: [line[:n] for line, n in zip(lines, counts, strict=True)] for name, lines in rows.items()}


def _described(samples: Samples) -> PolicySamples:
    return PolicySamples(
        [[c.text for c in row] for row in samples],
        [[c.scored for c in row] for row in samples],
        [[c.finished for c in row] for row in samples],
    )
