"""Sampled feedback: what is drawn, judged, estimated and fitted.

Statistical tests are seeded, hence decided once and for all; for a fresh seed each states its error rate. A z-test at
|z| < 5 errs with probability 6e-7 per comparison.
"""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.policies import log_from_probabilities, mirror_step
from nashpo.core.rules import COMAL, DPO, EGPO, INPO, IPO, ONPO, SPPO, IterativeDPO, NashMD
from nashpo.core.rules.form import win
from nashpo.core.selfplay import self_play
from nashpo.tabular.bands import band, gap_bands
from nashpo.tabular.enumerated import Enumerated
from nashpo.tabular.game import Game
from nashpo.tabular.judging import LABELS, PAIRS
from nashpo.tabular.noise import AdversarialFlips, RandomFlips
from nashpo.tabular.play import play
from nashpo.tabular.projection import LogLinear, Softmax
from nashpo.tabular.run import Run
from nashpo.tabular.sampled import Sampled
from nashpo.tabular.sampled_backend import SampledBackend, keyed

RULES = [
    SPPO(0.3),
    ONPO(0.3),
    ONPO(0.3, variant="one_step"),
    ONPO(0.3, variant="leader"),
    INPO(eta=0.3, tau=0.2),
    NashMD(eta=0.3, tau=0.2),
    EGPO(eta=0.3, tau=0.2),
    COMAL(eta=0.3, tau=0.2, inner=3),
]


def uniform_game(n, seed=0, contexts=()):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((*contexts, n, n)) - 0.5, 1)
    return Game(0.5 + upper - np.swapaxes(upper, -1, -2))


def policy(n, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(n, 2.0))


def backend(game, feedback, projection=None, **origins):
    logs = {name: log_from_probabilities(np.asarray(p)) for name, p in origins.items()}
    return SampledBackend(feedback, game, logs, projection or Softmax())


def answers(game, feedback, on, opponent=None):
    """What a backend answers about ``opponent`` on responses of ``on``: responses and values, flat, and the answer."""
    asked = backend(game, feedback, start=on, reference=on if opponent is None else opponent)
    start = asked.start("start")
    answer = asked.ask("key", win("current"), start if opponent is None else asked.start("reference"), start)
    return answer.responses, answer.values, answer


def step(game, on, eta, feedback, projection, key="project"):
    """One fitted SPPO step, log-policies (replicates, n), and the exact one."""
    asked = backend(game, feedback, projection, start=on)
    final = self_play(SPPO(eta).form(), asked, 1)
    exact = mirror_step([(1.0, np.log(on))], [(eta, game.A @ on)])
    return np.asarray(final.slots["current"].handle), exact


def z_scores(responses, values, expected):
    """Per response, (mean of its values − expected)/standard error; values of one set count as one observation."""
    found = []
    for y in range(len(expected)):
        mine = responses == y
        sets = mine.any(-1)
        means = np.sum(np.where(mine, values, 0), -1)[sets] / np.sum(mine, -1)[sets]
        found.append((means.mean() - expected[y]) / (means.std() / np.sqrt(len(means))))
    return np.array(found)


def test_responses_follow_their_policy():
    """Counts of 200,000 draws against π, four responses: |z| < 5 (error 2e-6); what has probability 0 is not drawn."""
    on = np.array([0.5, 0.3, 0.2 - 1e-3, 1e-3, 0.0])
    responses, _, _ = answers(uniform_game(5), Sampled(K=5, batch=40_000), on)
    counts = np.bincount(responses.ravel(), minlength=5)
    assert counts[4] == 0
    z = (counts - 200_000 * on)[:4] / np.sqrt(200_000 * on * (1 - on))[:4]
    assert np.max(np.abs(z)) < 5


@pytest.mark.parametrize("K", [2, 3])
def test_shrinkage_by_enumeration(K):
    """E[P̂(y) − ½ | y] = (1 − 1/K)(P(y ≻ π) − ½), summed over all 4^K response sets with their probabilities."""
    game, on = uniform_game(4), policy(4)
    sets = np.array(list(itertools.product(range(4), repeat=K)))[None]
    chance = np.prod(on[sets[0]], axis=-1)
    for estimate, factor in (("self", 1 - 1 / K), ("unbiased", 1.0)):
        asked = backend(game, Sampled(K=K, batch=len(sets[0]), estimate=estimate), start=on)
        answer = asked._among(sets, asked.start("start"), "key")
        given_first = np.array([np.sum((chance * answer.values[0, :, 0])[sets[0, :, 0] == y]) for y in range(4)]) / on
        assert_allclose(given_first, factor * (game.A @ on), atol=1e-14)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize(("estimate", "factor"), [("self", 0.8), ("unbiased", 1.0)])
def test_estimates_in_the_mean(labels, estimate, factor):
    """First responses of 100,000 sets of K = 5: |z| < 5 about the right factor (error 2e-6), > 10 about the other."""
    game, on = uniform_game(4, seed=1), policy(4, seed=1)
    feedback = Sampled(K=5, batch=100_000, labels=labels, estimate=estimate)
    responses, values, _ = answers(game, feedback, on)
    first = responses[..., :1], values[..., :1]
    assert np.max(np.abs(z_scores(*first, factor * (game.A @ on)))) < 5
    assert np.max(np.abs(z_scores(*first, (1.8 - factor) * (game.A @ on)))) > 10


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("estimate", ["self", "unbiased"])
def test_payoffs_against_another_policy_are_not_shrunk(labels, estimate):
    """|z| < 5 about P(y ≻ ρ) − ½ whatever the estimate is (error 2e-6): no response meets itself."""
    game, on, opponent = uniform_game(4, seed=2), policy(4, seed=2), policy(4, seed=3)
    feedback = Sampled(K=3, batch=50_000, labels=labels, estimate=estimate)
    responses, values, answer = answers(game, feedback, on, opponent)
    assert answer.excess is None
    assert np.max(np.abs(z_scores(responses, values, game.A @ opponent))) < 5


def test_hard_labels_are_one_coin_for_both_orders():
    game, on = uniform_game(4, seed=4), policy(4)
    responses, values, answer = answers(game, Sampled(K=4, batch=500, labels="hard"), on)
    off = ~np.eye(4, dtype=bool)
    assert_array_equal(np.abs(answer.excess[..., off]), 0.5)
    assert_array_equal(answer.excess, -np.swapaxes(answer.excess, -1, -2))
    assert_allclose(values, np.sum(answer.excess, -1) / 4, atol=1e-15)
    soft = answers(game, Sampled(K=4, batch=500), on)[2].excess
    assert_array_equal(soft, game.A[responses[..., :, None], responses[..., None, :]] * off)


def test_pairs_of_a_response_set():
    gains = np.array([[0.1, -0.2, 0.4, 0.0, -0.3], [0.0, 0.0, 0.0, 0.0, 0.0]])
    every, iid, extreme = (PAIRS[name](gains) for name in ("all", "iid", "best_worst"))
    assert every.left.shape == (2, 10)
    assert_allclose(every.points, 0.2)
    assert_array_equal(iid.left, [[0, 2], [0, 2]])
    assert_array_equal(iid.right, [[1, 3], [1, 3]])
    assert_allclose(iid.points, [[0.25, 0.25, 0.25, 0.25, 0]] * 2)
    assert (extreme.left[0, 0], extreme.right[0, 0]) == (2, 4)
    assert_allclose(extreme.points, [[0, 0, 0.5, 0, 0.5], [0, 0, 0, 0, 0]])
    assert_array_equal(extreme.weight, [[1.0], [0.0]])


def test_best_against_worst_of_three_overstates():
    """Two responses, P(0 ≻ 1) = ¾, uniform policy, K = 3 hard labels, worked by hand.

    Of the sets {0, 0, 1} and {0, 1, 1} the chosen pair tells 0 from 1 only if the odd one won or lost both its
    comparisons, (¾)² against (¼)²: the better response is declared winner 9 times in 10. The labelled loss then fits a
    log-odds change of η (.9 · ½ − .1 · ½) = .4 η. Independent pairs give η (¾ − ½) = .25 η, the exact step.
    2,000 sets, 50 replicates: about 1,100 and 1,000 informative pairs each, and |z| < 5 of the replicates' mean
    (error 6e-7 each).
    """
    game, on = Game([[0.5, 0.75], [0.25, 0.5]]), np.array([0.5, 0.5])
    for pairs, expected in (("iid", 0.25), ("best_worst", 0.4)):
        feedback = Sampled(K=3, batch=2000, labels="hard", pairs=pairs, replicates=50)
        fitted, exact = step(game, on, 1.0, feedback, Softmax("labelled"))
        change = fitted[:, 0] - fitted[:, 1]
        assert abs(change.mean() - expected) < 5 * change.std() / np.sqrt(50)
        assert change.std() < 0.03
    assert_allclose(exact[0] - exact[1], 0.25)


def test_the_best_is_declared_the_winner():
    """With hard labels even where it lost to the worst; soft labels stay what they are."""
    game, on = uniform_game(4, seed=5), policy(4, seed=5)
    for labels in ("hard", "soft"):
        answer = answers(game, Sampled(batch=2000, labels=labels), on)[2]
        chosen = PAIRS["best_worst"](answer.values)
        sets = np.arange(2000)
        own = answer.excess[0, sets, chosen.left[0, :, 0], chosen.right[0, :, 0]]
        verdicts = answer.verdicts(chosen, LABELS[labels])[0, :, 0]
        assert_array_equal(verdicts, {"hard": np.full(2000, 0.5), "soft": own}[labels])
        if labels == "hard":
            assert 20 < np.sum(own < 0) < 600


def test_best_against_worst_is_biased_on_an_intransitive_game():
    """With soft labels, which state P and declare nobody: independent pairs converge to the exact step, chosen ones do
    not. 20,000 sets of K = 5; the i.i.d. error is noise of size 1e-2, and the bias ten times that."""
    game, on = uniform_game(4, seed=5), policy(4, seed=5)
    errors = {}
    for pairs in ("iid", "best_worst"):
        fitted, exact = step(game, on, 1.0, Sampled(batch=20_000, pairs=pairs), Softmax("labelled"))
        errors[pairs] = np.sum(np.abs(np.exp(fitted[0]) - np.exp(exact)))
    assert errors["iid"] < 0.01
    assert errors["best_worst"] > 5 * errors["iid"]


@pytest.mark.parametrize(
    ("projection", "labels", "counts"),
    [
        (Softmax("labelled"), "hard", [2**k for k in range(5, 13)]),
        (Softmax("labelled"), "soft", [2**k for k in range(5, 13)]),
    ],
)
def test_fitted_step_converges_in_the_number_of_pairs(projection, labels, counts):
    """Mean l1 distance from the exact step against the number of independent pairs: slope −½, measured to ±.05."""
    game, on = uniform_game(5, seed=6), np.full(5, 0.2)
    errors = []
    for count in counts:
        fitted, exact = step(
            game, on, 1.0, Sampled(K=2, batch=count, pairs="iid", labels=labels, replicates=200), projection
        )
        errors.append(np.mean(np.sum(np.abs(np.exp(fitted) - np.exp(exact)), -1)))
    slope = np.polyfit(np.log(counts[2:]), np.log(errors[2:]), 1)[0]
    assert abs(slope + 0.5) < 0.05


@pytest.mark.parametrize("normalizer", ["half", "log_z"])
def test_fitted_step_converges_in_K(normalizer):
    """SPPO's loss with K = 16 … 256: slope −½, measured to ±.08.

    The labels are soft: the K² coins of hard ones add an error of order 1/K, which is seen at these K.
    """
    game, on = uniform_game(5, seed=7), np.full(5, 0.2)
    counts, errors = [2**k for k in range(4, 9)], []
    for K in counts:
        fitted, exact = step(
            game,
            on,
            0.5,
            Sampled(K=K, estimate="unbiased", replicates=150),
            Softmax("pointwise", normalizer),
        )
        errors.append(np.mean(np.sum(np.abs(np.exp(fitted) - np.exp(exact)), -1)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.08


@pytest.mark.parametrize("K", [2, 5])
def test_self_comparison_acts_as_a_smaller_step(K):
    """With many sets SPPO's step of η is the exact one of η (K − 1)/K; not so the unbiased one, nor the pairwise loss.

    60,000 sets, within .015 in l1; the steps of η and of its shrunk value are at least .1 apart.
    """
    game, on, eta = uniform_game(4, seed=2), np.full(4, 0.25), 3.0
    shrunk, exact = (mirror_step([(1.0, np.log(on))], [(b, game.A @ on)]) for b in (eta * (K - 1) / K, eta))
    assert np.sum(np.abs(np.exp(shrunk) - np.exp(exact))) > 0.1
    for estimate, projection, expected in (
        ("self", Softmax("pointwise", "log_z"), shrunk),
        ("unbiased", Softmax("pointwise", "log_z"), exact),
        ("self", Softmax("pairwise"), exact),
        ("unbiased", Softmax("pairwise"), exact),
        ("self", Softmax("labelled"), exact),
    ):
        fitted = step(game, on, eta, Sampled(K=K, batch=60_000, estimate=estimate), projection)[0][0]
        assert np.sum(np.abs(np.exp(fitted) - np.exp(expected))) < 0.015, (estimate, projection)


def test_single_sets_shrink_under_every_loss():
    """All pairs of one set, soft labels: the three losses have one minimizer, log-odds η (P̂(y) − P̂(y'))."""
    game, on = uniform_game(6, seed=8), policy(6)
    feedback = Sampled(replicates=30)
    fits = [step(game, on, 1.0, feedback, Softmax(*loss))[0] for loss in (["pairwise"], ["labelled"])]
    assert_allclose(fits[0], fits[1], atol=1e-12)
    with_log_z = step(game, on, 1.0, feedback, Softmax("pointwise", "log_z"))[0]
    assert_allclose(with_log_z, fits[0], atol=1e-12)


def same(a, b):
    assert_array_equal(a.gap_average, b.gap_average)
    assert_array_equal(a.last, b.last)
    assert_array_equal(a.kept["current"], b.kept["current"])


def test_the_seed_fixes_the_run():
    game = uniform_game(5, contexts=(3,))

    def run(**changes):
        return play(
            ONPO(0.4), game, 12, keep=["current"], feedback=Sampled(**{"replicates": 4, "labels": "hard", **changes})
        )

    first = run()
    same(first, run())
    assert np.abs(first.last - run(seed=1).last).max() > 1e-3
    replicates = first.last.reshape(4, -1)
    assert np.min(np.abs(replicates[:, None] - replicates).max(-1)[~np.eye(4, dtype=bool)]) > 1e-3
    contexts = first.kept["current"][0]
    assert np.abs(contexts[:, 0] - contexts[:, 1]).max() > 1e-3
    assert_array_equal(run(replicates=2).last, first.last[:2])
    attacked = [run(replicates=r, noise=AdversarialFlips(0.15)).last for r in (2, 4)]
    assert_array_equal(attacked[0], attacked[1][:2])


class Store:
    """The last state, and all before it."""

    def __init__(self, states=()):
        self.states = list(states)

    def load(self):
        return self.states[-1] if self.states else None

    def commit(self, state):
        self.states.append(state)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_run_goes_on_where_it_was_cut(rule):
    """Draws are functions of seed and key: a new backend that continues from any state ends at the same policy."""
    game, on = uniform_game(4, seed=9), policy(4)
    feedback = Sampled(K=3, labels="hard", noise=RandomFlips(0.1), replicates=2)

    def fresh():
        return backend(game, feedback, Softmax("labelled"), start=on, reference=on, behavior=on)

    store = Store()
    whole = self_play(rule.form(), fresh(), 7, store=store)
    for cut in (1, 4):
        again = self_play(rule.form(), fresh(), 7, store=Store(store.states[:cut]))
        assert_array_equal(again.slots["current"].handle, whole.slots["current"].handle)
        assert again.slots["current"].key == whole.slots["current"].key


class Recorder(SampledBackend):
    """Repeats every operation and notes the response sets."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def ask(self, key, payoff, policy, on):
        first, second = (super(Recorder, self).ask(key, payoff, policy, on) for _ in range(2))
        assert_array_equal(first.responses, second.responses)
        assert_array_equal(first.values, second.values)
        self.asked.append((on.key, payoff.policy, first))
        return first

    def project(self, key, base, terms, on):
        first, second = (super(Recorder, self).project(key, base, terms, on) for _ in range(2))
        assert_array_equal(first, second)
        return first


def recorded(rule, steps):
    game, on = uniform_game(4, seed=9), policy(4)
    asked = Recorder(
        Sampled(K=3, labels="hard", replicates=50), game, {"start": np.log(on), "reference": np.log(on)}, Softmax()
    )
    self_play(rule.form(), asked, steps)
    return asked.asked


def test_payoffs_of_a_stage_are_on_the_same_responses():
    asked = recorded(ONPO(0.3, variant="one_step"), 3)
    assert [name for _, name, _ in asked] == ["current", "current", "previous", "current", "previous"]
    assert_array_equal(asked[1][2].responses, asked[2][2].responses)
    assert asked[1][2].excess is not None
    assert asked[2][2].excess is None
    assert np.any(asked[1][2].responses != asked[3][2].responses)


def test_opponents_of_another_policy_belong_to_the_question():
    """Each question about another policy draws its own; one about the responses' own policy has nothing to draw."""
    asked = backend(uniform_game(4), Sampled(batch=20, labels="hard"), start=policy(4), reference=policy(4, seed=1))
    start, reference = asked.start("start"), asked.start("reference")
    other = [asked.ask(key, win("reference"), reference, start) for key in ("a", "b")]
    own = [asked.ask(key, win("current"), start, start) for key in ("a", "b")]
    soft = backend(uniform_game(4), Sampled(batch=20), start=policy(4), reference=policy(4, seed=1))
    drawn = [soft.ask(key, win("reference"), soft.start("reference"), soft.start("start")) for key in ("a", "b")]
    assert_array_equal(other[0].responses, other[1].responses)
    assert np.mean(drawn[0].values != drawn[1].values) > 0.5
    assert_array_equal(own[0].excess, own[1].excess)


def test_two_stages_on_the_same_feedback_and_on_fresh_feedback():
    """ONPO asks once per iteration and uses the answer twice, EGPO asks again about its half step."""
    assert len(recorded(ONPO(0.3), 3)) == 3
    asked = recorded(EGPO(eta=0.3, tau=0.2), 2)
    assert [name for _, name, _ in asked] == ["current", "half"] * 2
    assert np.any(asked[0][2].responses != asked[1][2].responses)


def test_random_flips_shrink_soft_payoffs_exactly():
    game, on = uniform_game(4), policy(4)
    clean = answers(game, Sampled(batch=100), on)[2]
    noisy = answers(game, Sampled(batch=100, noise=RandomFlips(0.2)), on)[2]
    assert_allclose(noisy.excess, 0.6 * clean.excess, atol=1e-15)
    assert_allclose(noisy.values, 0.6 * clean.values, atol=1e-15)


def test_random_flips_of_hard_labels_in_the_mean():
    """First responses of 100,000 sets: |z| < 5 about (1 − 2 rate) times the shrunk payoff (error 2e-6)."""
    game, on = uniform_game(4, seed=1), policy(4, seed=1)
    feedback = Sampled(batch=100_000, labels="hard", noise=RandomFlips(0.2), estimate="unbiased")
    responses, values, answer = answers(game, feedback, on)
    assert set(np.unique(np.abs(answer.excess))) == {0.0, 0.5}
    assert np.max(np.abs(z_scores(responses[..., :1], values[..., :1], 0.6 * (game.A @ on)))) < 5


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_the_adversary_does_the_worst_there_is(labels):
    """Against all sets of at most two flips of the six comparisons of K = 4, by enumeration; rate ⅓ is two flips."""
    game, on = uniform_game(6, seed=10), policy(6)
    true = game.A @ on
    feedback = {"K": 4, "batch": 60, "labels": labels}
    responses, values, clean = answers(game, Sampled(**feedback), on)
    attacked = answers(game, Sampled(**feedback, noise=AdversarialFlips(1 / 3 + 1e-12)), on)[2]
    pairs = list(zip(*np.triu_indices(4, 1), strict=True))
    for k in range(60):
        gain = true[responses[0, k]]
        table = clean.excess[0, k]
        assert np.sum(np.abs(np.triu(attacked.excess[0, k] - table)) > 0) <= 2
        reached = np.sum(attacked.values[0, k] * gain)
        for flipped in itertools.chain.from_iterable(itertools.combinations(pairs, r) for r in range(3)):
            changed = table.copy()
            for i, j in flipped:
                changed[i, j], changed[j, i] = -changed[i, j], -changed[j, i]
            assert np.sum(changed.sum(-1) / 4 * gain) >= reached - 1e-14


def test_the_adversary_flips_its_share_against_other_policies_too():
    """Rate .1 of 9 comparisons is .9 flips: at most that many in the mean of 20,000 sets (5 errors: 3e-7)."""
    game, on, opponent = uniform_game(5, seed=11), policy(5), policy(5, seed=1)
    feedback = {"K": 3, "batch": 20_000, "labels": "hard"}
    clean = answers(game, Sampled(**feedback), on, opponent)[1]
    attacked = answers(game, Sampled(**feedback, noise=AdversarialFlips(0.1)), on, opponent)[1]
    flips = np.sum(np.abs(attacked - clean), -1) * 3
    assert set(np.round(np.unique(flips), 9)) == {0.0, 1.0}
    assert flips.mean() < 0.9 + 5 * np.sqrt(0.09 / 20_000)
    assert flips.mean() > 0.8  # a few sets have no win of a better response to take away
    true = game.A @ opponent
    gain = true[answers(game, Sampled(**feedback), on, opponent)[0]]
    gain = gain - gain.mean(-1, keepdims=True)
    assert np.all(np.sum((attacked - clean) * gain, -1) <= 1e-15)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("projection", [Softmax(), Softmax("pairwise"), Softmax("labelled"), "linear"], ids=str)
def test_every_rule_plays_on_samples(rule, projection):
    """A ragged game of six contexts: shapes, normalization, nothing for missing responses."""
    rng = np.random.default_rng(12)
    mask = np.ones((2, 3, 5), dtype=bool)
    mask[0, 1, 3:] = mask[1, 2, 0] = False
    game = Game(uniform_game(5, seed=12, contexts=(2, 3)).P, mask=mask)
    if projection == "linear":
        projection = LogLinear(rng.normal(size=(5, 2)), "pairwise", ridge=1e-3)
    run = play(rule, game, 8, record="all", keep=["current"], feedback=Sampled(replicates=3), projection=projection)
    assert run.gap_average.shape == (8, 3, 2, 3)
    assert run.kept["current"].shape == (8, 3, 2, 3, 5)
    assert_allclose(np.sum(run.last, -1), 1, atol=1e-13)
    assert_array_equal(run.last[:, ~mask], 0)
    assert np.all(run.last[:, mask] > 0)
    assert np.abs(run.last - run.last[:1]).max() > 1e-3


def test_many_sets_and_the_pairwise_loss_follow_the_exact_run():
    """Five iterations of every rule with 20,000 sets each end near the exact run, .03 in l1 after moves of .1 to .4."""
    game = uniform_game(4, seed=13)
    for rule in RULES:
        exact = play(rule, game, 5, engine="reference").last
        feedback = Sampled(K=4, batch=20_000)
        fitted = play(rule, game, 5, feedback=feedback, projection=Softmax("pairwise")).last[0]
        assert np.sum(np.abs(fitted - exact)) < 0.03, rule
        assert np.sum(np.abs(exact - 0.25)) > 0.1, rule


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_enumerated_feedback_and_a_table_are_the_exact_run(rule):
    """The population's pairwise, labelled and log-Z losses, through the same loop: equal to 1e-10 after 20 steps."""
    game = uniform_game(5, seed=14, contexts=(2,))
    exact = play(rule, game, 20, keep=["current"], engine="reference")
    for projection in (Softmax("pairwise"), Softmax("labelled"), Softmax("pointwise", "log_z")):
        fitted = play(rule, game, 20, keep=["current"], feedback=Enumerated(), projection=projection)
        assert_allclose(fitted.kept["current"], exact.kept["current"], atol=1e-10)
        assert_allclose(fitted.gap_average, exact.gap_average, atol=1e-10)


def test_dpo_learns_its_reward_from_labels():
    """On a Bradley–Terry game: enumerated, with soft labels, and with many hard ones; the default loss is DPO's."""
    reward = np.array([0.5, 0.0, -1.0, 0.2])
    game = Game(1 / (1 + np.exp(reward[None] - reward[:, None])), reward=reward)
    exact = play(DPO(tau=0.7), game, 1, engine="reference").last
    assert_allclose(play(DPO(tau=0.7), game, 1, feedback=Enumerated()).last, exact, atol=1e-12)
    assert_allclose(play(DPO(tau=0.7), game, 1, feedback=Sampled(batch=50)).last[0], exact, atol=1e-12)
    hard = play(DPO(tau=0.7), game, 1, feedback=Sampled(batch=20_000, labels="hard")).last[0]
    assert np.sum(np.abs(hard - exact)) < 0.05
    three = play(IterativeDPO(tau=2.0), game, 3, feedback=Sampled(batch=50))
    assert_allclose(three.last[0], play(IterativeDPO(tau=2.0), game, 3, engine="reference").last, atol=1e-12)
    with pytest.raises(ValueError, match="the logistic loss has no minimizer"):
        play(DPO(tau=0.7), game, 1, feedback=Sampled(K=2, labels="hard", replicates=50))
    linear = LogLinear(np.eye(4), "logistic", ridge=1e-2)
    assert np.isfinite(
        play(DPO(tau=0.7), game, 1, feedback=Sampled(K=2, labels="hard", replicates=50), projection=linear).last
    ).all()


def test_ipo_plays_against_its_behavior_policy():
    game, behavior = uniform_game(4, seed=15), policy(4, seed=15)
    exact = play(IPO(tau=0.5), game, 1, behavior=behavior, engine="reference").last
    feedback = Sampled(batch=50_000, pairs="iid", labels="hard")
    fitted = play(IPO(tau=0.5), game, 1, behavior=behavior, feedback=feedback, projection=Softmax("labelled")).last[0]
    assert np.sum(np.abs(fitted - exact)) < 0.03


def test_bands_over_replicates(tmp_path):
    run = play(SPPO(0.3), uniform_game(4, contexts=(2,)), 16, feedback=Sampled(replicates=40))
    average, last = gap_bands(run, level=0.5)
    assert average.replicates == 40
    assert average.median.shape == run.recorded.shape
    assert_allclose(last.median, np.median(run.mean_gap_last, axis=1), atol=1e-15)
    inside = (run.mean_gap_last >= last.low[:, None]) & (run.mean_gap_last <= last.high[:, None])
    assert_array_equal(inside.sum(axis=1), 20)
    run.save(tmp_path / "run.npz")
    assert_array_equal(Run.load(tmp_path / "run.npz").gap_average, run.gap_average)
    with pytest.raises(ValueError, match="the run has no replicates"):
        gap_bands(play(SPPO(0.3), uniform_game(4), 4))
    with pytest.raises(ValueError, match="level = 1 must lie between 0 and 1"):
        band(np.ones((2, 2)), level=1)
    with pytest.raises(ValueError, match=r"values have shape \(2,\)"):
        band(np.ones(2))


def test_arithmetic_forgets_the_key():
    log_policy = keyed(np.log(np.full(3, 1 / 3)), "key")
    assert log_policy.key == "key"
    assert type(np.exp(log_policy)) is np.ndarray
    assert type(log_policy + 1) is np.ndarray
    assert isinstance(np.sum(log_policy), float)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampled(K=1), r"K = 1 must be a whole number >= 2"),
        (lambda: Sampled(K=2.5), r"K = 2.5 must be a whole number"),
        (lambda: Sampled(K=True), r"K = True must be a whole number"),
        (lambda: Sampled(seed=-1), r"seed = -1 must be a whole number >= 0"),
        (lambda: Sampled(replicates=0), r"replicates = 0 must be a whole number >= 1"),
        (lambda: Sampled(batch=0), r"batch = 0 must be a whole number >= 1"),
        (lambda: Sampled(pairs="best"), r"pairs = 'best' is none of all, iid, best_worst"),
        (lambda: Sampled(labels="medium"), r"labels = 'medium' is none of soft, hard"),
        (lambda: Sampled(estimate="median"), r"estimate = 'median' is none of self, unbiased"),
        (lambda: Sampled(noise=0.1), r"noise = 0.1 is no noise: give RandomFlips\(rate\)"),
        (lambda: RandomFlips(1.5), r"rate = 1.5 must lie in \[0, 1\]"),
        (lambda: AdversarialFlips(-0.1), r"rate = -0.1 must lie in \[0, 1\]"),
    ],
)
def test_bad_feedback_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_is_refused_before_any_work():
    game, feedback = uniform_game(4), Sampled()
    with pytest.raises(TypeError, match="projection = 'softmax' is no projection"):
        play(SPPO(0.1), game, 2, feedback=feedback, projection="softmax")
    with pytest.raises(ValueError, match=r"features have shape \(3, 2\), but the game has 4 responses"):
        play(SPPO(0.1), game, 2, feedback=feedback, projection=LogLinear(np.ones((3, 2))))
    with pytest.raises(
        ValueError, match="loss = 'logistic' does not fit a payoff of kind 'win': use pointwise, pairwise"
    ):
        play(SPPO(0.1), game, 2, feedback=feedback, projection=Softmax("logistic"))
    with pytest.raises(ValueError, match="loss = 'pairwise' does not fit a payoff of kind 'reward': use logistic"):
        play(DPO(0.1), game, 1, feedback=feedback, projection=Softmax("pairwise"))
    with pytest.raises(ValueError, match="projection is for sampled feedback"):
        play(SPPO(0.1), game, 2, projection=Softmax())
