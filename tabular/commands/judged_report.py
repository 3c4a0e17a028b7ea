"""What a policy over judged responses plays: shares per model, win rates, and how far it is from the reference.

Shapes: policies are (contexts, n) probabilities, one column per model; results are means over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities
from nashpo.tabular.commands.output import number, paragraph, probability, table
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.judged import Judged
from nashpo.tabular.policy_input import log_policy

LADDER = (0.01, 0.1, 1.0)
"""KL weights that show what regularization makes of the game, where none is given."""


def equilibria(judged: Judged, tau: float | None = None, reference: Any = None) -> dict[str, np.ndarray]:
    """The Nash policy, and those of the regularized game for ``tau`` or for every weight of `LADDER`.

    Returns
    -------
    dict title -> (contexts, n)
    """
    weights = (tau,) if tau else LADDER
    policies = {"Nash": np.asarray(nash(judged.game).policy)}
    return policies | {
        f"tau={weight:g}": np.asarray(nash(judged.game, tau=weight, reference=reference).policy) for weight in weights
    }


def judged_facts(judged: Judged, policies: Mapping[str, np.ndarray], reference: Any = None) -> dict[str, Any]:
    """Shares, win rates and divergence of every policy, as JSON.

    Parameters
    ----------
    judged : Judged
    policies : mapping title -> (contexts, n)
    reference : (contexts, n), optional
        What win rates and KL are measured against; uniform over the answers of a prompt by default.
    """
    return {
        "prompts": len(judged.prompts),
        "baseline": judged.models[-1],
        "bradley_terry": True,
        "ties": judged.ties(),
        "reference": "uniform" if reference is None else "given",
        "policies": {title: _measures(judged, policy, reference) for title, policy in policies.items()},
    }


def _measures(judged: Judged, policy: np.ndarray, reference: Any) -> dict[str, Any]:
    game = judged.game
    log_reference = np.asarray(log_policy(game, reference, "reference"))
    against = np.exp(log_reference)
    baseline = game.P[..., :, -1]
    return {
        "shares": judged.model_shares(policy),
        "win_rate_over_reference": float(game.mean(game.win_rate(policy, against))),
        "win_rate_over_baseline": float(game.mean(np.sum(policy * baseline, axis=-1))),
        "kl_to_reference": float(game.mean(kl(log_from_probabilities(policy), log_reference))),
    }


def judged_text(facts: Mapping[str, Any]) -> str:
    """`judged_facts` for a reader."""
    measured = facts["policies"]
    titles = list(measured)
    shares = [measured[title]["shares"] for title in titles]
    models = sorted(shares[0], key=lambda model: -shares[0][model])
    reference = "uniform" if facts["reference"] == "uniform" else "reference"
    below = {
        f"win rate over {reference}": "win_rate_over_reference",
        "win rate over baseline": "win_rate_over_baseline",
        f"KL to {reference}, nats": "kl_to_reference",
    }
    rows = [[model, *(probability(share[model]) for share in shares)] for model in models]
    rows += [[""] * (len(titles) + 1)]
    rows += [[label, *(number(measured[title][key]) for title in titles)] for label, key in below.items()]
    tied = f"{facts['ties']} of {facts['prompts']} prompts"
    about = (
        "This game is Bradley-Terry by construction: P(i beats j) = sigmoid(logit p_i - logit p_j), where p is an"
        f" answer's win rate over that of {facts['baseline']}. So the Nash policy plays the best answer of every"
        f" prompt; in {tied} several tie for it. A KL weight tau > 0 keeps the policy near the {reference} one."
    )
    return "\n".join([paragraph(about), "", "How often each model's answer is played", table(["model", *titles], rows)])
