"""The fitted policies: minimizers of the losses over tables and over log-linear policies.

Tolerances: a table's fit is one linear system or one scalar equation, right to about 1e-13 in log π; a log-linear one
ends where Newton's steps are below 1e-13. 1e-11 leaves a hundredfold margin.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from nashpo.core.losses import logistic, pairwise_square, pointwise_square
from nashpo.core.policies import kl, log_normalize, mirror_step
from nashpo.tabular.minimizers import minimize_logistic, minimize_pairwise, minimize_pointwise
from nashpo.tabular.projection import LogLinear, Softmax
from nashpo.tabular.samples import Sample

TIGHT = 1e-11
LOSSES = ["pointwise", "pairwise", "labelled", "logistic"]


def games(rng, count, n, spread=1.0):
    """A (count, n, n), skew, entries within ½ · spread."""
    upper = np.triu(rng.random((count, n, n)) - 0.5, 1) * spread
    return upper - np.swapaxes(upper, -1, -2)


def policies(rng, count, n):
    return np.log(rng.dirichlet(np.ones(n), count))


def gains(A, log_policy):
    return np.squeeze(A @ np.exp(log_policy)[..., None], -1)


def pair_law(log_policy):
    return np.exp(log_policy[..., :, None] + log_policy[..., None, :])


def enumerated(A, log_policy, eta):
    g = gains(A, log_policy)
    return Sample.enumerated(np.exp(log_policy), eta * g, eta * A, step=eta)


@pytest.mark.parametrize("eta", [1e-2, 0.5, 3.0, 100.0])
def test_population_minimizers_are_the_exact_step(eta):
    """With log Z, with differences of payoffs and with soft labels: Proposition 6 of INPO, whatever η is."""
    rng = np.random.default_rng(1)
    A, log_base = games(rng, 50, 6), policies(rng, 50, 6)
    g = gains(A, log_base)
    exact = mirror_step([(1.0, log_base)], [(eta, g)])
    log_z = np.squeeze(np.log(np.sum(np.exp(log_base + eta * g), -1, keepdims=True)), -1)[:, None]
    law = pair_law(log_base)
    tight = TIGHT * max(1.0, eta)
    assert_allclose(minimize_pointwise(log_base, eta * g - log_z, np.exp(log_base)), exact, atol=tight)
    assert_allclose(minimize_pairwise(log_base, eta * (g[:, :, None] - g[:, None, :]), law), exact, atol=tight)
    assert_allclose(minimize_pairwise(log_base, eta * A, law), exact, atol=tight)


def test_weights_of_other_policies_do_not_move_a_realizable_minimizer():
    """The pointwise and the pairwise target are met exactly, so that any full-support weights give the exact step."""
    rng = np.random.default_rng(2)
    A, log_base, on = games(rng, 30, 5), policies(rng, 30, 5), policies(rng, 30, 5)
    g = gains(A, log_base)
    exact = mirror_step([(1.0, log_base)], [(1.0, g)])
    fitted = minimize_pairwise(log_base, g[:, :, None] - g[:, None, :], pair_law(on))
    assert_allclose(fitted, exact, atol=TIGHT)


@pytest.mark.parametrize(("eta", "expected"), [(0.01, 6e-10), (0.1, 7e-7), (0.5, 8e-5), (1.0, 7e-4), (3.0, 1.5e-2)])
def test_constant_half_is_off_by_its_documented_error(eta, expected):
    """THEORY.md 1.3, random 6×6 games, median l1 distance from the exact step, here within a third of it."""
    rng = np.random.default_rng(3)
    A, log_base = games(rng, 400, 6), policies(rng, 400, 6)
    fitted = minimize_pointwise(log_base, eta * gains(A, log_base), np.exp(log_base))
    exact = mirror_step([(1.0, log_base)], [(eta, gains(A, log_base))])
    error = np.median(np.sum(np.abs(np.exp(fitted) - np.exp(exact)), axis=-1))
    assert 2 / 3 * expected < error < 4 / 3 * expected


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("size", [0.2, 2.0])
def test_pointwise_minimizer_against_a_foreign_one(shift, size):
    """BFGS on the logits from the same core loss finds nothing better; shifts make Σ base e^target fall off 1."""
    rng = np.random.default_rng(4)
    for _ in range(6):
        log_base, weights = policies(rng, 1, 5)[0], rng.dirichlet(np.ones(5))
        target = size * rng.normal(size=5) + shift

        def loss(logits, log_base=log_base, target=target, weights=weights):
            return np.sum(weights * pointwise_square(log_normalize(logits) - log_base, target))

        ours = minimize_pointwise(log_base, target, weights)
        assert_allclose(np.sum(np.exp(ours)), 1, atol=1e-14)
        found = minimize(loss, log_base + target, options={"gtol": 1e-10})
        assert loss(ours) <= found.fun * (1 + 1e-9) + 1e-14


def test_pointwise_stationarity_on_hard_cases():
    """w (log π − log base − target)/π is the same for all responses: targets of ±500 nats, weights of 1e-12."""
    rng = np.random.default_rng(5)
    log_base = policies(rng, 200, 4)
    weights = 10.0 ** rng.uniform(-12, 0, (200, 4))
    target = 500 * (rng.random((200, 4)) - 0.3)
    log_policy = minimize_pointwise(log_base, target, weights)
    # λ π = w · residual in logs; far from a response's own optimum the residual is known to 1e-13 of 500 nats
    residual = log_base + target - log_policy
    clear = np.abs(residual) > 1e-3
    log_lambda = np.log(np.where(clear, np.abs(weights * residual), 1.0)) - log_policy
    low, high = (np.where(clear, log_lambda, fill) for fill in (np.inf, -np.inf))
    assert np.sum(clear) > 300
    assert np.max(np.max(high, axis=-1) - np.min(low, axis=-1)) < 1e-7
    assert_allclose(np.sum(np.exp(log_policy), -1), 1, atol=1e-13)


def test_pairwise_minimizer_is_stationary_and_least():
    rng = np.random.default_rng(6)
    log_base, law = policies(rng, 1, 5)[0], rng.random((5, 5))
    target = games(rng, 1, 5, 3.0)[0]

    def loss(log_policy):
        ratio = log_policy - log_base
        return np.sum(law * pairwise_square(ratio[:, None], ratio[None, :], target))

    best = minimize_pairwise(log_base, target, law)
    for _ in range(50):
        assert loss(best) < loss(log_normalize(best + 0.05 * rng.normal(size=5)))


def test_comparisons_share_only_what_they_connect():
    """Worked by hand: base (.1, .3, .2, .4), one comparison 0–1 with target log 2, one 2–3 with target 0.

    0 and 1 had odds 1 : 3 and get 2 : 3 of their .4, which is (.16, .24); 2 and 3 keep (.2, .4).
    """
    base = np.array([0.1, 0.3, 0.2, 0.4])
    target, weights = np.zeros((4, 4)), np.zeros((4, 4))
    target[0, 1], target[1, 0] = np.log(2), -np.log(2)
    weights[0, 1] = weights[2, 3] = 1.0
    fitted = np.exp(minimize_pairwise(np.log(base), target, weights))
    assert_allclose(fitted, [0.16, 0.24, 0.2, 0.4], atol=1e-15)


def test_of_all_minimizers_the_one_nearest_to_the_base():
    """Moving mass between components, or inside an unseen part, leaves the loss alone and only raises KL(base ‖ π)."""
    rng = np.random.default_rng(7)
    log_base, target = policies(rng, 1, 5)[0], games(rng, 1, 5)[0]
    weights = np.zeros((5, 5))
    weights[0, 1] = weights[1, 2] = 1.0
    fitted = minimize_pairwise(log_base, target, weights)
    nearest = kl(log_base, fitted)
    for _ in range(100):
        a, b, c = 0.3 * rng.normal(size=3)
        other = log_normalize(fitted + np.array([a, a, a, b, c]))
        assert kl(log_base, other) >= nearest - 1e-15


def test_unseen_responses_keep_their_probability():
    rng = np.random.default_rng(8)
    log_base = policies(rng, 20, 6)
    weights = np.where(np.arange(6) < 4, 1.0, 0.0)
    fitted = minimize_pointwise(log_base, rng.normal(size=(20, 6)), weights)
    assert_allclose(fitted[:, 4:], log_base[:, 4:], atol=1e-15)
    assert_allclose(np.sum(np.exp(fitted), -1), 1, atol=1e-14)
    assert_allclose(minimize_pointwise(log_base, np.ones(6), np.zeros(6)), log_base, atol=1e-14)


def test_impossible_responses_stay_impossible():
    rng = np.random.default_rng(9)
    log_base = log_normalize(np.where(np.arange(5) == 2, -np.inf, rng.normal(size=(10, 5))))
    A = games(rng, 10, 5)
    for fitted in (
        minimize_pointwise(log_base, gains(A, log_base), np.ones(5)),
        minimize_pairwise(log_base, A, np.ones((5, 5))),
        minimize_logistic(log_base, A + 0.5, np.ones((5, 5)), 1.0),
    ):
        assert np.all(fitted[:, 2] == -np.inf)
        assert_allclose(np.sum(np.exp(fitted), -1), 1, atol=1e-14)


def test_tiny_probabilities_do_not_spoil_the_pairwise_fit():
    """Probabilities down to 1e-12 make pair weights of 1e-24; scaled, the system is as good as any."""
    rng = np.random.default_rng(10)
    log_base = log_normalize(np.log(10.0) * rng.uniform(-12, 0, (50, 8)))
    A = games(rng, 50, 8)
    exact = mirror_step([(1.0, log_base)], [(1.0, gains(A, log_base))])
    assert_allclose(minimize_pairwise(log_base, A, pair_law(log_base)), exact, atol=TIGHT)


def test_logistic_minimizer_is_base_times_exp_reward():
    """P(i ≻ j) = σ(r_i − r_j) gives base · e^{r/β} for any full-support pairs (DPO eq. 4)."""
    rng = np.random.default_rng(11)
    log_base, reward, beta = policies(rng, 40, 5), rng.normal(size=(40, 5)), 0.3
    P = 1 / (1 + np.exp(reward[:, None, :] - reward[:, :, None]))
    weights = rng.random((40, 5, 5))
    exact = log_normalize(log_base + reward / beta)
    fitted = minimize_logistic(log_base, P, weights + np.swapaxes(weights, -1, -2), beta)
    assert_allclose(fitted, exact, atol=TIGHT)


def test_logistic_minimizer_on_a_game_without_a_reward_is_least():
    rng = np.random.default_rng(12)
    log_base, P, law = policies(rng, 1, 5)[0], games(rng, 1, 5, 0.9)[0] + 0.5, rng.random((5, 5))

    def loss(log_policy):
        ratio = log_policy - log_base
        return np.sum(law * P * logistic(ratio[:, None], ratio[None, :], 0.5))

    best = minimize_logistic(log_base, P, law, 0.5)
    for _ in range(50):
        assert loss(best) < loss(log_normalize(best + 0.1 * rng.normal(size=5)))


def test_logistic_refuses_a_response_that_never_loses():
    P = np.array([[0.5, 1.0, 0.7], [0.0, 0.5, 0.6], [0.3, 0.4, 0.5]])
    fitted = minimize_logistic(np.zeros(3), P, np.ones((3, 3)), 1.0)  # 0 loses to 2, 2 to 1: finite
    assert np.isfinite(fitted).all()
    P[0, 2], P[2, 0] = 1.0, 0.0
    with pytest.raises(ValueError, match="no minimizer: some compared responses never lose"):
        minimize_logistic(np.zeros(3), P, np.ones((3, 3)), 1.0)


def test_minimizers_refuse_bad_arguments():
    with pytest.raises(ValueError, match="weights must be finite and >= 0; got -1"):
        minimize_pointwise(np.zeros(2), np.zeros(2), np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="pair_weights must be finite and >= 0; got nan"):
        minimize_pairwise(np.zeros(2), np.zeros((2, 2)), np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"beta = 0 must be > 0"):
        minimize_logistic(np.zeros(2), np.full((2, 2), 0.5), np.ones((2, 2)), 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("normalizer", ["half", "log_z"])
def test_one_free_feature_per_response_is_a_table(loss, normalizer):
    """LogLinear with the identity finds the table's minimizer by another method (Newton on logits)."""
    rng = np.random.default_rng(13)
    A, log_base = games(rng, 20, 5, 0.9), policies(rng, 20, 5)
    sample = enumerated(A, log_base, 0.7)
    table = Softmax(loss, normalizer).fit(log_base, sample)
    linear = LogLinear(np.eye(5), loss, normalizer).fit(log_base, sample)
    assert_allclose(linear, table, atol=TIGHT)


@pytest.mark.parametrize("loss", ["pairwise", "labelled", "pointwise"])
def test_realizable_log_linear_policies_take_the_exact_step(loss):
    """A = Φ M Φᵀ with skew M has every payoff Aπ in the span of the features Φ."""
    rng = np.random.default_rng(14)
    features, M = rng.normal(size=(12, 3)), games(rng, 20, 3)
    A = features @ M @ features.T
    A *= 0.5 / np.max(np.abs(A), axis=(-1, -2), keepdims=True)
    log_base = log_normalize(np.squeeze(features @ rng.normal(size=(20, 3, 1)), -1))
    fitted = LogLinear(features, loss, "log_z").fit(log_base, enumerated(A, log_base, 2.0))
    exact = mirror_step([(1.0, log_base)], [(2.0, gains(A, log_base))])
    assert_allclose(fitted, exact, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_misspecified_log_linear_policies_are_the_best_of_their_class(loss):
    """Not the exact step; and no other Δ has a smaller population loss, whose formulas are those of core."""
    rng = np.random.default_rng(15)
    features = rng.normal(size=(8, 2))
    A, log_base = games(rng, 1, 8, 0.9)[0], policies(rng, 1, 8)[0]
    eta, g, law, base = 1.5, gains(A, log_base), pair_law(log_base), np.exp(log_base)
    fitted = LogLinear(features, loss).fit(log_base, enumerated(A, log_base, eta))
    values = {
        "pointwise": lambda lr: np.sum(base * pointwise_square(lr, eta * g)),
        "pairwise": lambda lr: np.sum(law * pairwise_square(lr[:, None], lr, eta * (g[:, None] - g))),
        "labelled": lambda lr: np.sum(law * pairwise_square(lr[:, None], lr, eta * A)),
        "logistic": lambda lr: np.sum(law * (A + 0.5) * logistic(lr[:, None], lr, 1 / eta)),
    }
    exact = mirror_step([(1.0, log_base)], [(eta, g)])
    assert np.sum(np.abs(np.exp(fitted) - np.exp(exact))) > 1e-2
    least = values[loss](fitted - log_base)
    for direction in rng.normal(size=(40, 2)):
        assert values[loss](log_normalize(fitted + 1e-2 * features @ direction) - log_base) > least


def test_ridge_shrinks_the_step_and_vanishes():
    rng = np.random.default_rng(16)
    features, A, log_base = rng.normal(size=(6, 2)), games(rng, 1, 6)[0], policies(rng, 1, 6)[0]
    sample = enumerated(A, log_base, 1.0)
    plain, tiny, large = (
        LogLinear(features, "labelled", ridge=ridge).fit(log_base, sample) for ridge in (0, 1e-9, 1e3)
    )
    assert_allclose(tiny, plain, atol=1e-7)
    assert np.max(np.abs(large - log_base)) < 1e-2 * np.max(np.abs(plain - log_base))
    # The normal equations of Σ_ij π_i π_j ((φ_i − φ_j)·Δ − A_ij)² + ridge |Δ|²
    law, rows = pair_law(log_base).ravel(), (features[:, None] - features).reshape(-1, 2)
    delta = np.linalg.solve((rows.T * law) @ rows + 0.3 * np.eye(2), (rows.T * law) @ A.ravel())
    fitted = LogLinear(features, "labelled", ridge=0.3).fit(log_base, sample)
    assert_allclose(fitted, log_normalize(log_base + features @ delta), atol=TIGHT)


@pytest.mark.parametrize("projection", [Softmax(), Softmax("pairwise"), Softmax("labelled")])
def test_few_draws_and_many_are_reduced_alike(projection):
    """Five draws among ten responses are fitted in five places, the same draws four times over in ten."""
    rng = np.random.default_rng(17)
    log_base, n, K = policies(rng, 30, 10), 10, 5
    left, right = np.triu_indices(K, 1)
    responses, values = rng.integers(0, n, (30, K)), rng.normal(size=(30, K))
    labels = rng.normal(size=(30, len(left)))

    def sample(times):
        offsets = np.repeat(np.arange(times) * K, len(left))
        return Sample(
            responses=np.tile(responses, times),
            values=np.tile(values, times),
            points=np.full((30, K * times), 1 / (K * times)),
            left=np.tile(np.broadcast_to(left, labels.shape), times) + offsets,
            right=np.tile(np.broadcast_to(right, labels.shape), times) + offsets,
            differences=np.tile(labels**2, times),
            labels=np.tile(labels, times),
            pair_weights=np.full((30, len(left) * times), 1 / (len(left) * times)),
        )

    assert_allclose(projection.fit(log_base, sample(1)), projection.fit(log_base, sample(4)), atol=1e-12)


def test_a_table_and_all_features_agree_on_few_draws():
    """On a sample too: the pointwise loss is taken conditional on the drawn responses by both classes."""
    rng = np.random.default_rng(18)
    log_base, K = policies(rng, 30, 7), 4
    left, right = (np.broadcast_to(k, (30, 6)) for k in np.triu_indices(K, 1))
    responses, values = rng.integers(0, 7, (30, K)), rng.normal(size=(30, K))
    none, sixth = np.zeros((30, 6)), np.full((30, 6), 1 / 6)
    sample = Sample(responses, values, np.full((30, K), 0.25), left, right, none, none, sixth)
    table, linear = (p.fit(log_base, sample) for p in (Softmax(), LogLinear(np.eye(7))))
    for row, drawn in enumerate(responses):
        seen = np.unique(drawn)
        assert_allclose(
            log_normalize(table[row, seen]), log_normalize(linear[row, seen]), atol=TIGHT, err_msg=f"row {row}"
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Softmax("hinge"), r"loss = 'hinge' is none of pointwise, pairwise, labelled, logistic"),
        (lambda: Softmax(normalizer="one"), r"normalizer = 'one' is none of half, log_z"),
        (lambda: LogLinear(np.ones(3)), r"features have shape \(3,\), expected \(n, d\)"),
        (lambda: LogLinear(np.full((2, 2), np.nan)), "features hold NaN"),
        (lambda: LogLinear(np.ones((2, 2)), ridge=-1.0), r"ridge = -1.0 must be a number >= 0"),
        (
            lambda: LogLinear(np.ones((2, 2))).check(3, ()),
            r"features have shape \(2, 2\), but the game has 3 responses",
        ),
        (lambda: LogLinear(np.ones((4, 3, 2))).check(3, (5,)), r"expected \(3, d\) or \(5, 3, d\)"),
    ],
)
def test_bad_projections_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_features_may_have_their_own_table_in_every_context():
    rng = np.random.default_rng(19)
    features, A, log_base = rng.normal(size=(3, 5, 2)), games(rng, 3, 5), policies(rng, 3, 5)
    LogLinear(features).check(5, (3,))
    together = LogLinear(features, "pairwise").fit(log_base, enumerated(A, log_base, 1.0))
    for k in range(3):
        one = LogLinear(features[k], "pairwise").fit(log_base[k], enumerated(A[k], log_base[k], 1.0))
        assert_allclose(together[k], one, atol=TIGHT)
