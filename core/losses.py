"""Losses whose minimizer is a rule's exact step: pure, unreduced functions on arrays.

Shapes: every argument broadcasts against the others, typically (B,) over responses or pairs; the result is unreduced.
``log_ratio`` or ``lr`` is log π_θ(y) − Σ_i a_i log π_i(y) in nats: the policy being fitted against the stage's base.
Arrays may come from any library with the array API; only differentiable array operations are used.
"""

from collections.abc import Callable

from array_api_compat import array_namespace

from nashpo.core.policies import Array


def pointwise_square(log_ratio: Array, target: Array) -> Array:
    """(log π(y)/π_t(y) − target)², the loss of SPPO.

    With ``target = η g(y) − log Z`` and any weights of full support, the minimizer over all policies is the exact
    step π ∝ π_t exp(ηg), at loss 0. SPPO in practice puts η/2 in the place of log Z: ``target = η (g(y) − ½)``. Since
    log Z − η/2 = KL(π_t ‖ π_{t+1}) ∈ [0, η² range(g)²/8], that minimizer is off the exact step by second order in η.

    Source: SPPO (2405.00675) eqs. 4.4 (log Z) and 4.6, 4.7 (constant ½). UCLA's code halves the sum over a pair.
    """
    return (log_ratio - target) ** 2


def pairwise_square(lr_a: Array, lr_b: Array, target: Array) -> Array:
    """((lr_a − lr_b) − target)², in which log Z cancels.

    With pairs y, y' drawn independently from a full-support policy and ``target = η (g(y) − g(y'))``, the minimizer is
    the exact step. The soft label ``target = η (P(y ≻ y') − ½)`` has the same minimizer when the pairs are drawn from
    the policy whose win rate g is: there, E[P(y ≻ y') − ½ | y] = g(y) − ½.

    Source: ONPO (2502.16852) Algorithm 1, INPO (2407.00617) Proposition 6, EGPO for the soft label.
    """
    return ((lr_a - lr_b) - target) ** 2


def labelled_square(lr_w: Array, lr_l: Array, margin: float | Array) -> Array:
    """((lr_w − lr_l) − margin)² on a labelled pair: ``w`` was preferred to ``l``.

    With ``margin = η/2`` and pairs drawn independently from the policy whose win rate g is, the expectation over the
    label equals that of `pairwise_square` with ``target = η (g(y) − g(y'))`` up to a constant that no policy changes.
    Choosing the best and the worst of K responses breaks the equality. IPO is ``margin = 1/(2τ)`` against the
    reference, on sums and not on means over tokens.

    Source: ONPO (2502.16852) Algorithm 1; IPO (2310.12036).
    """
    return ((lr_w - lr_l) - margin) ** 2


def logistic(lr_w: Array, lr_l: Array, beta: float | Array) -> Array:
    """−log σ(β (lr_w − lr_l)), the loss of DPO, computed without overflow.

    With preferences P(y ≻ y') = σ(r(y) − r(y')) and pairs of full support the minimizer is π ∝ base · exp(r/β), where
    ``base`` is the policy of the log-ratios; without such an r, r is the Bradley–Terry projection of P under the pairs'
    distribution.

    Source: DPO (2305.18290).
    """
    margin = beta * (lr_w - lr_l)
    xp = array_namespace(margin)
    return xp.logaddexp(xp.zeros_like(margin), -margin)


def bradley_terry(value_w: Array, value_l: Array, label: float | Array = 1.0) -> Array:
    """−label · log σ(f_w − f_l) − (1 − label) · log σ(f_l − f_w), the log-loss of a reward on labelled pairs.

    ``label`` in [0, 1] is 1 for a hard label and the probability that ``w`` was preferred for a soft one. The data loss
    L_D of SPAC's critic and of reward modelling is its mean over pairs.
    """
    return label * logistic(value_w, value_l, 1.0) + (1 - label) * logistic(value_l, value_w, 1.0)


def identity_term(log_ratio: Array) -> Array:
    """The self-generated term as it stands: E log π/π_t = −KL(π_t ‖ π), which is unbounded below."""
    return log_ratio


def log_sigmoid_term(log_ratio: Array) -> Array:
    """The self-generated term through −log σ(−·): bounded below by 0, and flat once a response is given up."""
    xp = array_namespace(log_ratio)
    return xp.logaddexp(xp.zeros_like(log_ratio), log_ratio)


def spac_practical(
    lr_w: Array,
    lr_l: Array,
    lr_self: Array,
    beta: float,
    lam_pref: float = 1.0,
    lam_critic: float = 1.0,
    smoothing: Callable[[Array], Array] = log_sigmoid_term,
) -> Array:
    """lam_pref · (−log σ(β (lr_w − lr_l))) + lam_critic · smoothing(lr_self), SPAC on one time scale.

    The change of variables f = (1/η) log(π/π_t), β = 1/η, merges the critic and the actor step. Log-ratios are against
    π_t; ``lr_self`` belongs to responses that π_t generated (and, in practice, to the pair itself). The theory puts its
    weight λ = Θ(√(C·N)) on the data term, practice puts one on the critic term: both are exposed. With
    `identity_term` the loss is unbounded below; with `log_sigmoid_term` its minimizer departs from the exact step.

    Source: SPAC (2406.04274), practical algorithm as summaries state it; the smoothing's exact form is our choice.
    """
    return lam_pref * logistic(lr_w, lr_l, beta) + lam_critic * smoothing(lr_self)


def chi_link(log_ratio: Array) -> Array:
    """φ(z) = z + log z at z = π/ref, given log z: the link of χPO, from the χ² + KL regularizer (2407.13399)."""
    xp = array_namespace(log_ratio)
    return xp.exp(log_ratio) + log_ratio


def chi_po(lr_w: Array, lr_l: Array, beta: float, clip: float) -> Array:
    """−log σ(clip_{±clip}(β φ(z_w) − β φ(z_l))), the loss of χPO with its clip at 2R.

    Source: Huang et al., χPO (2407.13399), as summaries state it.
    """
    margin = beta * (chi_link(lr_w) - chi_link(lr_l))
    xp = array_namespace(margin)
    clipped = xp.clip(margin, -clip, clip)
    return xp.logaddexp(xp.zeros_like(clipped), -clipped)
