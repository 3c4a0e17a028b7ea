"""Checking claims: those that share an ensemble see one and the same samples, which are made once.

Shapes: see `nashpo.tabular.claims.claim`.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular.claims.claim import Claim, Result, Tally

THREADS = 2
"""The engine and numpy release the interpreter lock."""


@dataclass(frozen=True)
class Verification:
    """What a check of several claims found.

    Attributes
    ----------
    results : list of Result
        In the order of the claims.
    game_steps : int
        Steps that were played and checked, each counted once however many claims looked at it.
    """

    results: list[Result]
    game_steps: int

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays for figures, by name."""
        return {name: np.asarray(rows[0]) for r in self.results for name, rows in r.tally.arrays.items() if "/" in name}


def run_claims(
    claims: Iterable[Claim], quick: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check claims, those that share an ensemble on one and the same samples.

    Parameters
    ----------
    claims : iterable of Claim
    quick : bool
        Fewer and shorter samples.
    progress : callable (done, of), optional
        Told after every sample.

    Returns
    -------
    Verification
    """
    wanted = list(claims)
    tallies = {claim.id: Tally() for claim in wanted}
    jobs: list[tuple[list[Claim], Callable[[], Any]]] = []
    for ensemble in dict.fromkeys(e for claim in wanted for e in claim.ensembles):
        sharing = [claim for claim in wanted if ensemble in claim.ensembles]
        jobs += [(sharing, make) for make in ensemble.samples(quick)]

    def work(job: tuple[list[Claim], Callable[[], Any]]) -> dict[str, Tally]:
        sharing, make = job
        sample = make()
        found = {claim.id: Tally() for claim in sharing}
        for claim in sharing:
            claim.check(sample, found[claim.id])
        return found

    game_steps = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for done, found in enumerate(pool.map(work, jobs), 1):
            for identifier, tally in found.items():
                tallies[identifier].add(tally)
            game_steps += max(tally.steps for tally in found.values())
            if progress is not None:
                progress(done, len(jobs))
    for claim in wanted:
        if claim.conclude is not None:
            claim.conclude(tallies[claim.id])
    return Verification([Result(claim, tallies[claim.id]) for claim in wanted], game_steps)
