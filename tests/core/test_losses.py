"""The losses: arithmetic by hand, equal under every array library, and their identities by enumeration.

Tolerances: a few float64 roundings (1e-15 relative), 1e-12 where sums over pairs are compared.
"""

import math
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from nashpo.core.games import excess_payoff
from nashpo.core.losses import (
    bradley_terry,
    chi_link,
    chi_po,
    identity_term,
    labelled_square,
    log_sigmoid_term,
    logistic,
    pairwise_square,
    pointwise_square,
    spac_practical,
)
from nashpo.core.policies import kl, log_normalize, log_partition, mirror_step
from nashpo.tabular.win_rates import to_numpy

LIBRARIES = [np, torch, array_api_strict]


@pytest.fixture(params=LIBRARIES, ids=lambda xp: xp.__name__)
def array(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes float64 arrays of each library."""
    return lambda values: request.param.asarray(values, dtype=request.param.float64)


def test_pointwise_square_by_hand(array: Callable) -> None:
    """Log-ratios .3, −.2 and 0 against targets .1, .1 and .5:

    (.3 − .1)² = .2² = .04;  (−.2 − .1)² = (−.3)² = .09;  (0 − .5)² = .25.
    """
    loss = pointwise_square(array([0.3, -0.2, 0.0]), array([0.1, 0.1, 0.5]))
    assert_allclose(to_numpy(loss), [0.04, 0.09, 0.25], rtol=1e-15)


def test_pairwise_square_by_hand(array: Callable) -> None:
    """Log-ratios (.5, .2) with target .1 and (−.1, .3) with target 0:

    ((.5 − .2) − .1)² = .2² = .04;  ((−.1 − .3) − 0)² = .16.
    """
    loss = pairwise_square(array([0.5, -0.1]), array([0.2, 0.3]), array([0.1, 0.0]))
    assert_allclose(to_numpy(loss), [0.04, 0.16], rtol=1e-15)


def test_labelled_square_by_hand(array: Callable) -> None:
    """ONPO with η = ½, so margin η/2 = ¼: winner .5, loser −.5 gives (1 − ¼)² = .5625; winner = loser gives 1/16.

    IPO with τ = 2 has the same margin 1/(2τ) = ¼.
    """
    loss = labelled_square(array([0.5, 0.3]), array([-0.5, 0.3]), 0.5 / 2)
    assert_allclose(to_numpy(loss), [0.5625, 0.0625], rtol=1e-15)
    assert_allclose(to_numpy(labelled_square(array([0.5]), array([-0.5]), 1 / (2 * 2.0))), [0.5625], rtol=1e-15)


def test_logistic_by_hand(array: Callable) -> None:
    """β = 2: log-ratios equal give −log σ(0) = log 2 = .693147; (.5, 0) give −log σ(1) = log(1 + 1/e) = .313262.

    Far away nothing overflows: β(lr_w − lr_l) = −2000 gives 2000, and +2000 gives e^−2000 = 0.
    """
    loss = logistic(array([0.7, 0.5, -1000.0, 1000.0]), array([0.7, 0.0, 0.0, 0.0]), 2.0)
    assert_allclose(to_numpy(loss), [math.log(2), math.log1p(math.exp(-1)), 2000.0, 0.0], rtol=1e-15)


def test_bradley_terry_by_hand(array: Callable) -> None:
    """Values 1 and 0: −log σ(1) = .313262 if the first won, −log σ(−1) = 1.313262 if it lost.

    The soft label ¾ gives ¾ · .313262 + ¼ · 1.313262 = .563262.
    """
    won = math.log1p(math.exp(-1))
    loss = bradley_terry(array([1.0, 1.0, 1.0]), array([0.0, 0.0, 0.0]), array([1.0, 0.0, 0.75]))
    assert_allclose(to_numpy(loss), [won, won + 1, won + 0.25], rtol=1e-15)


def test_spac_practical_by_hand(array: Callable) -> None:
    """β = 2, winner .5, loser 0, self-generated log-ratio 1, weights 3 and ½.

    Preference term 3 · log(1 + e^−1) = .939785. As it stands the self-generated term adds ½ · 1; through −log σ(−·)
    it adds ½ · log(1 + e) = ½ · 1.313262.
    """
    terms = (array([0.5]), array([0.0]), array([1.0]))
    preference = 3 * math.log1p(math.exp(-1))
    plain = spac_practical(*terms, 2.0, lam_pref=3.0, lam_critic=0.5, smoothing=identity_term)
    smooth = spac_practical(*terms, 2.0, lam_pref=3.0, lam_critic=0.5, smoothing=log_sigmoid_term)
    assert_allclose(to_numpy(plain), [preference + 0.5], rtol=1e-15)
    assert_allclose(to_numpy(smooth), [preference + 0.5 * math.log1p(math.e)], rtol=1e-15)


def test_chi_po_by_hand(array: Callable) -> None:
    """φ(z) = z + log z: at log z = 0 it is 1, at log z = log 2 it is 2 + log 2 = 2.693147.

    β = ½ and winner at log 2, loser at 0: margin ½ · 1.693147 = .846574, loss log(1 + e^−.846574) = .356876.
    With a clip at ½ the margin is ½ and the loss log(1 + e^−½) = .474077.
    """
    assert_allclose(to_numpy(chi_link(array([0.0, math.log(2)]))), [1.0, 2 + math.log(2)], rtol=1e-15)
    margin = 0.5 * (1 + math.log(2))
    loss = chi_po(array([math.log(2)]), array([0.0]), 0.5, clip=10.0)
    assert_allclose(to_numpy(loss), [math.log1p(math.exp(-margin))], rtol=1e-15)
    clipped = chi_po(array([math.log(2)]), array([0.0]), 0.5, clip=0.5)
    assert_allclose(to_numpy(clipped), [math.log1p(math.exp(-0.5))], rtol=1e-15)


def test_losses_are_unreduced_and_broadcast(array: Callable) -> None:
    """(3, 1) against (2,): every pair of responses without writing pairs out."""
    a, b = array([[0.0], [1.0], [2.0]]), array([0.0, 1.0])
    for loss in (pairwise_square(a, b, 0.5), labelled_square(a, b, 0.5), logistic(a, b, 1.0)):
        assert tuple(loss.shape) == (3, 2)
    assert tuple(pointwise_square(a, b).shape) == (3, 2)


GRADIENTS = [
    # d/dx (x − c)² = 2(x − c): at x = .3, c = .1 it is .4.
    (lambda x: pointwise_square(x, torch.tensor(0.1)), 0.3, 0.4),
    # d/da ((a − .2) − .1)² = 2 · .2 at a = .5.
    (lambda x: pairwise_square(x, torch.tensor(0.2), torch.tensor(0.1)), 0.5, 0.4),
    # d/dl ((.5 − l) − ¼)² = −2(.25 − l) at l = −.5: −1.5.
    (lambda x: labelled_square(torch.tensor(0.5), x, 0.25), -0.5, -1.5),
    # d/dw −log σ(2w) = −2σ(−2w) at w = 0: −1.
    (lambda x: logistic(x, torch.tensor(0.0), 2.0), 0.0, -1.0),
    # d/ds log(1 + e^s) = σ(s) at s = 0: ½.
    (log_sigmoid_term, 0.0, 0.5),
]


@pytest.mark.parametrize(("loss", "at", "slope"), GRADIENTS)
def test_losses_are_differentiable(loss: Callable, at: float, slope: float) -> None:
    """Slopes worked out in the table; single precision constants, hence 1e-6."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    loss(x).backward()
    assert x.grad is not None
    assert_allclose(x.grad.item(), slope, rtol=1e-6, atol=1e-12)


class Enumerated:
    """A random game with every response and every pair written out; all expectations are sums."""

    def __init__(self, seed: int, n: int = 5) -> None:
        rng = np.random.default_rng(seed)
        upper = np.triu(rng.random((n, n)) - 0.5, 1)
        self.A = upper - upper.T
        self.log_policy = log_normalize(rng.standard_normal(n))
        self.pi = np.exp(self.log_policy)
        self.gain = excess_payoff(self.A, self.pi)
        self.pairs = self.pi[:, None] * self.pi
        self.candidates = [log_normalize(rng.standard_normal(n)) for _ in range(4)]


@pytest.mark.parametrize("seed", range(5))
def test_labels_equal_win_rates_up_to_a_constant(seed: int) -> None:
    """E_λ (h − η/2)² = E_{π×π} (h − η(g − g'))² + const = E_{π×π} (h − η(P − ½))² + const (THEORY.md 3.2, claim 20).

    The constants must not depend on the policy being fitted.
    """
    e, eta = Enumerated(seed), 0.7
    P = e.A + 0.5
    labelled, soft, square = [], [], []
    for candidate in e.candidates:
        lr = candidate - e.log_policy
        wins = labelled_square(lr[:, None], lr[None, :], eta / 2)  # row won
        labelled.append(np.sum(e.pairs * (P * wins + (1 - P) * wins.T)))
        soft.append(np.sum(e.pairs * pairwise_square(lr[:, None], lr[None, :], eta * e.A)))
        target = eta * (e.gain[:, None] - e.gain[None, :])
        square.append(np.sum(e.pairs * pairwise_square(lr[:, None], lr[None, :], target)))
    for other in (labelled, soft):
        constants = np.array(other) - np.array(square)
        assert_allclose(constants, constants[0], rtol=0, atol=1e-12)


def test_best_against_worst_is_not_the_same_loss() -> None:
    """The equality needs independent pairs: with pairs reweighted the 'constant' moves by more than 1e-3."""
    e, eta = Enumerated(0), 0.7
    P = e.A + 0.5
    chosen = e.pairs * (1 + 4 * np.abs(e.gain[:, None] - e.gain[None, :]))
    chosen /= chosen.sum()
    constants = []
    for candidate in e.candidates:
        lr = candidate - e.log_policy
        wins = labelled_square(lr[:, None], lr[None, :], eta / 2)
        target = eta * (e.gain[:, None] - e.gain[None, :])
        square = pairwise_square(lr[:, None], lr[None, :], target)
        constants.append(np.sum(chosen * (P * wins + (1 - P) * wins.T)) - np.sum(chosen * square))
    assert np.ptp(constants) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_step_has_loss_zero(seed: int) -> None:
    """With the true log Z every residual vanishes, and so does every difference of residuals."""
    e, eta = Enumerated(seed), 0.7
    exact = mirror_step([(1.0, e.log_policy)], [(eta, e.gain)])
    lr = exact - e.log_policy
    target = eta * e.gain - log_partition(e.log_policy, e.gain, eta)
    assert_allclose(pointwise_square(lr, target), 0, atol=1e-28)
    pairwise = pairwise_square(lr[:, None], lr[None, :], eta * (e.gain[:, None] - e.gain[None, :]))
    assert_allclose(pairwise, 0, atol=1e-28)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_constant_half_is_short_by_a_divergence(seed: int, eta: float) -> None:
    """log Z − η/2 = KL(π_t ‖ π_{t+1}) ∈ [0, η² range(g)²/8]; here gains are g − ½, so the constant is 0."""
    e = Enumerated(seed)
    exact = mirror_step([(1.0, e.log_policy)], [(eta, e.gain)])
    short = float(log_partition(e.log_policy, e.gain, eta))
    assert_allclose(short, float(kl(e.log_policy, exact)), rtol=1e-10)
    assert 0 <= short <= eta**2 * np.ptp(e.gain) ** 2 / 8


def test_the_papers_pair_form_of_sppo() -> None:
    """(4.12) with β = 1/η = 4 and a hard label: a = β lr_w = .8, b = β lr_l = −.4.

    (a − ½)² + (b + ½)² = .09 + .01 = .1 is β² = 16 times the two pointwise losses with target η(P − ½) = ±⅛.
    """
    eta = 0.25
    lr = np.array([0.8, -0.4]) * eta
    loss = pointwise_square(lr, eta * (np.array([1.0, 0.0]) - 0.5))
    assert_allclose(loss.sum() / eta**2, (0.8 - 0.5) ** 2 + (-0.4 + 0.5) ** 2, rtol=1e-14)


def test_plain_spac_term_is_unbounded_and_the_smooth_one_is_not() -> None:
    """A response that is given up (log-ratio → −∞) earns the plain term without end, the smooth one nothing more."""
    gone = np.array([-10.0, -1000.0])
    assert_allclose(identity_term(gone), gone)
    assert (log_sigmoid_term(gone) >= 0).all()
    assert_allclose(log_sigmoid_term(gone), [math.log1p(math.exp(-10)), 0.0], rtol=1e-12)
