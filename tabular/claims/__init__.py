"""The claims that ``nashpo verify`` checks, by subject. A new one is a `Claim` in its subject's file."""

from nashpo.tabular.claims import (
    approximate,
    losses,
    multiplicative_weights,
    multiturn,
    multiturn_mtpo,
    multiturn_rates,
    optimistic,
    pessimism,
    printed_bound,
    rare_arms,
    rates,
    regularized,
)
from nashpo.tabular.claims.claim import Claim, Result
from nashpo.tabular.claims.runner import Verification, run_claims

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for subject in (
        multiplicative_weights,
        optimistic,
        printed_bound,
        rates,
        regularized,
        losses,
        approximate,
        pessimism,
        rare_arms,
        multiturn,
        multiturn_mtpo,
        multiturn_rates,
    )
    for claim in subject.CLAIMS
}
"""Every claim by its id, in the order in which they are printed."""

__all__ = ["CLAIMS", "Claim", "Result", "Verification", "run_claims"]
