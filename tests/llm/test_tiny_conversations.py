"""Conversations with the tiny model: enumerated once, in one order, with a known other side and a known equilibrium."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.core.cli import main
from nashpo.core.policies import log_normalize
from nashpo.core.rules import INPO, ONPO, SPPO, IterativeDPO, Rule
from nashpo.core.rules.form import win
from nashpo.llm.conversation.user import Dialogue
from nashpo.llm.conversation.users.table import TableUser
from nashpo.llm.counted_conversations import (
    CountedBackend,
    TableFit,
    conversation_refusal,
    predict_conversations,
    repeated,
)
from nashpo.llm.exact import ExactRun, enumerated_log_policy
from nashpo.llm.exact_conversations import ExactConversations
from nashpo.llm.fit import Padding, policy_logprobs
from nashpo.llm.judges.table import TableJudge
from nashpo.llm.objectives import Labelled, Pairwise, Pointwise
from nashpo.llm.prediction import predict
from nashpo.llm.responses import Responses, Scored
from nashpo.llm.tiny import tiny_llama, tiny_tokenizer
from nashpo.llm.tiny_config import TinyModel, TinyWarmup
from nashpo.llm.tiny_game import LEADERS, tiny_equilibrium, tiny_games, tiny_target, tiny_tree, write_tables
from nashpo.llm.tiny_user import conversation_law, reply_probabilities
from nashpo.llm.transcript import transcript
from nashpo.llm.warmup import tiny_data
from nashpo.tabular.trees import Mixture, TreeGame, duality_gap, nash, play
from nashpo.tabular.trees.families import bandit
from nashpo.tabular.trees.policies import occupancy

torch.set_num_threads(1)  # fastest for models this small
TINY = TinyModel(symbols=3, length=1, prompts=4, turns=2)
SHAPES = [
    TINY,
    TinyModel(symbols=2, length=1, prompts=3, turns=3, seed=1),
    TinyModel(symbols=2, length=2, prompts=3, turns=2, replies=1),
    TinyModel(symbols=3, length=1, prompts=5, turns=2, replies=3, seed=2),
    TinyModel(symbols=2, length=2, prompts=2, turns=2, seed=3),
]
NAMES = [f"V{t.symbols} L{t.length} H{t.turns} R{t.replies}" for t in SHAPES]
each_shape = pytest.mark.parametrize("tiny", SHAPES, ids=NAMES)


# ---------------------------------------------------------------------------------------------------- what there is


def content(tiny: TinyModel, folder: Path) -> str:
    """A hash of everything that a model of one turn brings: files, games, warm-up; numbers to ten decimals."""
    found = hashlib.sha256()
    for path in write_tables(tiny, folder):
        found.update(path.read_bytes())
    game, equilibria = tiny_games(tiny)
    data = tiny_data(tiny)
    for numbers in (game.P, equilibria, tiny_target(tiny), data.weights.numpy()):
        found.update(np.round(numbers, 10).tobytes())
    found.update(repr([(s.ids, s.mask) for s in data.sequences]).encode())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("tiny", "expected"),
    [
        (TinyModel(), "05e208df0234f09b75c908c890349613a2d3a4cd461e022683d8126c0dc3c7c9"),
        (
            TinyModel(seed=3, symbols=2, length=4, prompts=3, warmup=TinyWarmup(0.5, 0.3)),
            "e0c08636dd0866085a05611eec2a52412cb68c867ea5ccf3284d7b04c9e0a7a5",
        ),
    ],
)
def test_one_turn_is_what_it_was(tiny: TinyModel, expected: str, tmp_path: Path) -> None:
    """Pinned before there were several turns."""
    assert content(tiny, tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["game.json", "prompts.jsonl"]


@each_shape
def test_conversations_are_counted_and_can_be_read_in_one_way(tiny: TinyModel) -> None:
    """No two have the same tokens or the same text, and no token is drawn after the same ids in two places."""
    m, R, H = len(tiny.turn_completions), tiny.replies, tiny.turns
    assert tiny.answers == m
    assert tiny.n == m * (R * m) ** (H - 1) == len(set(tiny.completions)) == len(set(tiny.responses))
    assert len(tiny.states) == tiny.prompts * sum((m * R) ** h for h in range(H))
    assert len(set(tiny.reply_ids)) == R
    begun = {answer[:k] for answer in tiny.turn_completions for k in range(len(answer))}
    assert len({(*state, *ids) for state in tiny.states for ids in begun}) == len(tiny.states) * len(begun)
    for tokens, mask in tiny.conversations:
        assert len(tokens) == len(mask)
        assert mask.count(0) == H - 1  # a reply is one word


@each_shape
def test_order_is_that_of_the_first_answer_first(tiny: TinyModel) -> None:
    """((y_1 R + r_1) m + y_2) …: ids, texts and masks alike; texts are those that a judge of conversations reads."""
    answers, replies = tiny.turn_completions, tiny.reply_ids
    places = product(range(len(answers)), *[range(len(replies)), range(len(answers))] * (tiny.turns - 1))
    for number, place in enumerate(places):
        tokens: list[int] = []
        turns = []
        for turn, i in enumerate(place):
            said = answers[i] if turn % 2 == 0 else (replies[i],)
            tokens += said
            turns.append({"role": ("assistant", "user")[turn % 2], "content": tiny.text(said)})
        assert tiny.completions[number] == tuple(tokens)
        assert tiny.responses[number] == transcript(turns)


def test_replies_are_the_words_tokens() -> None:
    tokenizer = tiny_tokenizer(TINY)
    for word in TINY.reply_ids:
        for text in (TINY.words[word], f" {TINY.words[word]} "):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == [word]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 0}, "turns = 0 must be at least 1"),
        ({"replies": 4}, "replies = 4 must be 1 to 3, the number of symbols"),
        ({"turns": 3}, "symbols = 3, length = 2, turns = 3 and replies = 2 make 8788 responses per prompt; 4 to 400"),
    ],
)
def test_bad_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyModel(**options)


# ------------------------------------------------------------------------------------------------ probabilities, games


@each_shape
def test_the_other_side_answers_with_known_probabilities(tiny: TinyModel) -> None:
    """Four decimals which add up to 1 in decimals, each at least .3/R less a decimal; they depend on what was said."""
    for number, p in enumerate(reply_probabilities(tiny), 1):
        assert p.shape == (tiny.prompts, *(tiny.answers, tiny.replies) * number)
        counts = np.round(p * 10**4)
        np.testing.assert_allclose(p * 10**4, counts, rtol=0, atol=1e-9)
        assert (counts.sum(-1) == 10**4).all()
        assert p.min() >= 0.3 / tiny.replies - 1e-4
        rows = p.reshape(-1, tiny.replies)
        assert tiny.replies == 1 or len(np.unique(rows, axis=0)) > 0.8 * len(rows)


def test_probabilities_of_all_conversations_add_up_to_one() -> None:
    """The model's, of the scored tokens alone, times the other side's: float32 log-probabilities."""
    model = tiny_llama(TINY)
    log_policy = enumerated_log_policy(model, TINY.states, TINY.turn_completions)
    law = conversation_law(TINY, np.exp(log_policy))
    np.testing.assert_allclose(law.sum(-1), 1, rtol=0, atol=1e-12)
    rows = [
        [Scored((*prompt, *tokens), (*(0,) * len(prompt), *mask)) for tokens, mask in TINY.conversations]
        for prompt in TINY.prompt_ids
    ]
    scored = np.exp(policy_logprobs(model, Responses.drawn(rows), Padding()).numpy())
    (replies,) = reply_probabilities(TINY)
    of_others = np.repeat(replies.reshape(TINY.prompts, -1), TINY.answers, axis=1)
    np.testing.assert_allclose(scored * of_others, law, rtol=0, atol=1e-5)
    assert abs(scored.sum(-1) - 1).min() > 0.1  # without the other side they are no probabilities


@each_shape
def test_tree_is_the_tables(tiny: TinyModel, tmp_path: Path) -> None:
    """States, chances and outcomes of the tree are those of the ids, of user.json and of game.json, in their order."""
    prompts, game, user = write_tables(tiny, tmp_path)
    judge, other, tree = TableJudge.read(game), TableUser.read(user), tiny_tree(tiny)
    np.testing.assert_allclose(judge.game.P, tree.table.P, rtol=0, atol=1e-15)
    assert [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()] == list(tiny.prompt_texts)
    assert judge.responses(tiny.prompt_texts[0]) == list(tiny.responses)
    assert tree.shape == (len(tiny.states), tiny.answers)
    turns: list[list[dict[str, str]]] = [[] for _ in tiny.prompt_ids]
    for depth, layer in enumerate(tree.layers[:-1]):
        here, below = tiny.states[tree.rows[depth]], tiny.states[tree.rows[depth + 1]]
        following: list[list[dict[str, str]]] = [[] for _ in below]
        assert layer.chance is not None
        for s, y in product(range(len(here)), range(tiny.answers)):
            said = [*turns[s], {"role": "assistant", "content": tiny.text(tiny.turn_completions[y])}]
            dialogue = Dialogue("", tiny.prompt_texts[layer.context[s]], tuple(said))
            np.testing.assert_allclose(other.distribution(dialogue), layer.chance[s, y], rtol=0, atol=1e-15)
            for r, word in enumerate(tiny.reply_ids):
                child = layer.child[s, y, r]
                assert below[child] == (*here[s], *tiny.turn_completions[y], word)
                following[child] = [*said, {"role": "user", "content": tiny.words[word]}]
        turns = following
    last = tree.layers[-1]
    for s, y in product(range(len(turns)), range(tiny.answers)):
        said = [*turns[s], {"role": "assistant", "content": tiny.text(tiny.turn_completions[y])}]
        assert transcript(said) == tiny.responses[tree.outcome[last.child[s, y]]]


@each_shape
def test_the_equilibrium_is_the_one_that_is_told(tiny: TinyModel) -> None:
    """Duality gap 0 to rounding, and the linear program finds the same law of conversations (to its tolerance)."""
    tree, policy = tiny_tree(tiny), tiny_equilibrium(tiny)
    law = tiny_games(tiny)[1]
    np.testing.assert_allclose(policy.sum(-1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(duality_gap(tree, policy), 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(law, conversation_law(tiny, policy), rtol=0, atol=1e-15)
    np.testing.assert_allclose(law, tree.law(occupancy(tree, policy)[1]), rtol=0, atol=1e-15)
    assert ((law > 0).sum(-1) == LEADERS * tiny.replies ** (tiny.turns - 1)).all()
    np.testing.assert_allclose(conversation_law(tiny, nash(tree, "sequence").policy), law, rtol=0, atol=1e-8)
    # A leader who does not listen loses: the second answer must fit the reply.
    deaf = policy.copy()
    deaf[tree.rows[-1]] = np.roll(deaf[tree.rows[-1]], 1, axis=-1)
    assert duality_gap(tree, deaf).min() > 0.1


@each_shape
def test_no_response_is_best(tiny: TinyModel) -> None:
    """No row of win rates is above one half throughout."""
    assert (np.asarray(tiny_games(tiny)[0].P) < 0.5).any(-1).all()


@each_shape
def test_the_warm_up_aims_for_its_target(tiny: TinyModel) -> None:
    """Weights of the sequences, summed by state and answer, are the target's answers at every state; in float32."""
    tiny = replace(tiny, warmup=TinyWarmup(concentration=0.5, uniform=0.3))
    data, target = tiny_data(tiny), tiny_target(tiny)
    np.testing.assert_allclose(data.weights.sum(), tiny.prompts, rtol=1e-7)
    assert target.min() >= 0.3 / tiny.answers
    place = {state: i for i, state in enumerate(tiny.states)}
    number = {answer: i for i, answer in enumerate(tiny.turn_completions)}
    counted = np.zeros(target.shape)
    for sequence, weight in zip(data.sequences, data.weights.tolist(), strict=True):
        edges = np.flatnonzero(np.diff([0, *sequence.mask, 0]))
        assert len(edges) == 2 * tiny.turns
        for begin, end in edges.reshape(-1, 2):
            counted[place[sequence.ids[:begin]], number[sequence.ids[begin:end]]] += weight
    np.testing.assert_allclose(counted / counted.sum(-1, keepdims=True), target, rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------- exact evaluation


TREE = tiny_tree(TINY)
START = tiny_target(TINY)


def test_hand_made_policies_are_evaluated_as_mixtures_of_conversations() -> None:
    """One policy knows what to do after one first answer, another after another: mixed per conversation they are the
    equilibrium, which the mean of their probabilities at each state is not."""
    equilibrium = tiny_equilibrium(TINY)
    weights = equilibrium[: TINY.prompts]
    rows = np.arange(TINY.prompts)[:, None]
    firsts = np.argsort(-weights, axis=1)[:, :LEADERS]
    keepers = []
    for k in range(LEADERS):
        one = np.full_like(equilibrium, 1 / TINY.answers)
        one[: TINY.prompts] = np.eye(TINY.answers)[firsts[:, k]]
        after = (rows * TINY.answers + firsts[:, [k]]) * TINY.replies + np.arange(TINY.replies)
        one[TINY.prompts + after] = equilibrium[TINY.prompts + after]
        keepers.append(one)
    weight = np.take_along_axis(weights, firsts, axis=1)[0]
    # As many of each as its weight says, to the nearest of 200.
    counts = np.round(200 * weight / weight.sum()).astype(int)
    with np.errstate(divide="ignore"):
        played = np.log(np.concatenate([np.repeat(p[None], c, axis=0) for p, c in zip(keepers, counts, strict=True)]))
        near = np.log(equilibrium)
    game = TreeGame([layer.child for layer in TREE.layers], TREE.table.P, [layer.chance for layer in TREE.layers],
                    weights=np.eye(TINY.prompts)[0])  # fmt: skip
    exact = ExactConversations(game, SPPO(1.0), "trajectory", None, "not asked")
    found = exact.evaluate(np.concatenate([played, near[None]]))
    assert found["gap_last"] == pytest.approx(0, abs=1e-12)
    assert found["gap_start"] > 0.1
    assert found["gap_average"] < 0.01  # counts are rounded to 1/200
    of_means = float(game.mean(duality_gap(game, np.exp(played).mean(0))))
    assert of_means > 0.1
    assert (found["certificate"], found["prediction"], found["inside"]) == (None, None, None)
    assert found["not_predicted"] == "not asked"


@pytest.mark.parametrize("level", ["trajectory", "state"])
@pytest.mark.parametrize("rule", [ONPO(1.0), SPPO(0.7), INPO(1.0, 0.1)], ids=lambda rule: rule.name)
def test_the_exact_play_evaluated_is_itself(rule: Rule, level: str) -> None:
    """Gaps up to rounding, total variation 0; a policy of another level is seen."""
    run = play(rule, TREE, 3, level=level, start=START, record="all", keep=("current",))
    policies = np.concatenate([np.log(START)[None], run.kept["current"]])
    exact = ExactConversations(TREE, rule, level, None, "not asked")
    for t in range(1, 4):
        found = exact.evaluate(policies[: t + 1])
        assert found["gap_last"] == pytest.approx(run.mean_gap_last[t - 1], abs=1e-12)
        assert found["gap_average"] == pytest.approx(run.mean_gap_average[t - 1], abs=1e-12)
        assert found["exact_play"]["gap_last"] == pytest.approx(found["gap_last"], abs=1e-12)
        assert found["exact_play"]["gap_average"] == pytest.approx(found["gap_average"], abs=1e-12)
        assert found["total_variation_from_prediction"] == pytest.approx(0, abs=1e-12)
        json.dumps(found)
    other = ExactConversations(TREE, ONPO(2.0), level, None, "").evaluate(policies)
    assert other["total_variation_from_prediction"] > 0.01


def test_what_has_no_exact_play_is_told() -> None:
    log_policies = np.stack([np.log(START)] * 2)
    found = ExactConversations(TREE, IterativeDPO(1.0), "trajectory", None, "").evaluate(log_policies)
    assert (found["exact_play"], found["prediction"], found["inside"]) == (None, None, None)
    assert "reward" in found["not_predicted"]
    assert found["gap_last"] == found["gap_start"]


def test_a_run_is_evaluated_at_all_states() -> None:
    """By the names of its policies, as runs of one turn are."""
    models = {"start": tiny_llama(TINY), "iterations/001/model": tiny_llama(replace(TINY, seed=1))}

    class Lent:
        def __init__(self, model: Any) -> None:
            self.model = model

        def __enter__(self) -> Any:
            return self.model

        def __exit__(self, *_: Any) -> None:
            pass

    use: Callable[[str], Any] = lambda name: Lent(models["start" if name == "reference" else name])  # noqa: E731
    exact = ExactConversations(TREE, ONPO(1.0), "trajectory", None, "")
    found = ExactRun(exact, TINY.states, TINY.turn_completions, use)(["start", "iterations/001/model"])
    log_policy = enumerated_log_policy(models["iterations/001/model"], TINY.states, TINY.turn_completions)
    np.testing.assert_array_equal(found["log_policies"]["current"], log_policy)
    assert found["gap_last"] == pytest.approx(TREE.mean(duality_gap(TREE, np.exp(log_policy))), abs=1e-12)


# ------------------------------------------------------------------------------------------ what tables predict of it


def test_tables_fit_is_the_least_squares() -> None:
    """No other policy has a smaller loss: 200 random changes of its logits, and it is far from the start."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(TINY.n, 5.0), size=TINY.prompts)
    gains = rng.normal(0, 0.5, (TINY.prompts, TINY.n))
    log_base = np.log(START)
    fitted = TableFit(TREE)(log_base, shares, gains)
    np.testing.assert_allclose(np.exp(fitted).sum(-1), 1, rtol=0, atol=1e-12)

    def loss(log_policy: np.ndarray) -> float:
        first, second = (log_policy - log_base)[: TINY.prompts], (log_policy - log_base)[TINY.prompts :]
        ratio = np.repeat(first, TINY.replies * TINY.answers, axis=1) + second.reshape(TINY.prompts, -1)
        left = ratio - gains
        return float((shares * (left - (shares * left).sum(-1, keepdims=True)) ** 2).sum())

    least = loss(fitted)
    assert least < 0.5 * loss(log_base)
    for size in (1e-3, 1e-2):
        for _ in range(100):
            assert loss(np.asarray(log_normalize(fitted + size * rng.normal(size=fitted.shape)))) > least


def test_tables_fit_of_one_turn_is_the_exact_step() -> None:
    """On all responses; what was not drawn keeps its probability."""
    game, _ = tiny_games(replace(TINY, turns=1))
    one = bandit(game)
    rng = np.random.default_rng(1)
    log_base = np.log(rng.dirichlet(np.ones(game.n), size=TINY.prompts))
    gains = rng.normal(0, 0.5, (TINY.prompts, game.n))
    fitted = TableFit(one)(log_base, np.exp(log_base), gains)
    np.testing.assert_allclose(fitted, log_normalize(log_base + gains), rtol=0, atol=1e-6)
    shares = np.tile([0.5, 0.5, 0, 0], (TINY.prompts, 1))
    fitted = TableFit(one)(log_base, shares, gains)
    np.testing.assert_array_equal(fitted[:, 2:], log_base[:, 2:])
    wanted = (log_base + gains)[:, 0] - (log_base + gains)[:, 1]
    np.testing.assert_allclose(fitted[:, 0] - fitted[:, 1], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [ONPO(2.0), SPPO(2.0)], ids=lambda rule: rule.name)
def test_of_one_turn_the_law_is_that_of_single_responses(rule: Rule) -> None:
    """Mean gaps of 4000 replicates of either, from 6 draws, within 4.5 standard errors in each of 4 places: fails by
    chance with probability 3e-5."""
    tiny = replace(TINY, turns=1)
    game, _ = tiny_games(tiny)
    log_start = np.log(tiny_target(tiny))
    told = predict(rule, game, log_start, log_start, Labelled(), K=6, steps=2, seed=0, replicates=4000)
    found = predict_conversations(rule, bandit(game), log_start, log_start, K=6, steps=2, seed=0, replicates=4000)
    for one, other in ((told.gap_last, found.gap_last), (told.distance, found.distance)):
        error = np.sqrt((one.var(axis=1) + other.var(axis=1)) / 4000)
        assert (np.abs(one.mean(axis=1) - other.mean(axis=1)) < 4.5 * error).all()
    np.testing.assert_allclose(told.exact_last, found.exact_last, rtol=0, atol=1e-12)


def test_the_draws_of_a_policy_are_its_opponents() -> None:
    """As in a run: among themselves they are compared once; another policy is drawn for each question."""
    backend = CountedBackend(TREE, {"start": np.log(START), "reference": np.log(START)}, 16, 0)
    start, reference = backend.start("start"), backend.start("reference")
    shares = backend.shares(start, start.key)
    np.testing.assert_allclose(16 * shares, np.round(16 * shares), rtol=0, atol=1e-12)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=0, atol=1e-12)
    payoff = win("current")
    own = [backend.ask(key, payoff, start, start) for key in ("one", "two")]
    np.testing.assert_array_equal(own[0], TREE.payoff(shares))
    np.testing.assert_array_equal(own[0], own[1])
    others = [backend.ask(key, payoff, reference, start) for key in ("one", "two")]
    assert (others[0] != others[1]).any()


def test_a_repeated_game_is_the_game() -> None:
    again = repeated(TREE, 3)
    assert (again.contexts, again.shape[0]) == (3 * TREE.contexts, 3 * TREE.shape[0])
    policy = np.concatenate([np.tile(START[rows], (3, 1)) for rows in TREE.rows])
    expected = Mixture.of(TREE, [START]).law
    np.testing.assert_allclose(again.law(occupancy(again, policy)[1]), np.tile(expected, (3, 1)), rtol=0, atol=1e-15)


def test_intervals_hold_as_often_as_they_say() -> None:
    """200 replicates of another seed, of which 190 are expected inside in all iterations; the intervals' own 200 add to
    the spread: 4 standard deviations, 4 √(200 · .05 · .95 · 2) = 17, fail by chance with probability 1e-4. Twenty of
    another step are all outside, and the more draws, the nearer the exact play."""
    about = (TREE, np.log(START), np.log(START))
    told = predict_conversations(ONPO(1.0), *about, K=96, steps=2, seed=0, replicates=200)
    again = predict_conversations(ONPO(1.0), *about, K=96, steps=2, seed=1, replicates=200)
    other = predict_conversations(ONPO(1.3), *about, K=96, steps=2, seed=2, replicates=20)
    intervals = [told.at(t) for t in (1, 2)]

    def inside(run: Any) -> np.ndarray:
        held = [
            (bounds[name]["low"] - 1e-9 <= values[t]) & (values[t] <= bounds[name]["high"] + 1e-9)
            for name, values in (("gap_last", run.gap_last), ("gap_average", run.gap_average))
            for t, bounds in enumerate(intervals)
        ]
        return np.all(held, axis=0)

    assert abs(inside(again).sum() - 190) <= 17
    assert not inside(other).any()
    many = predict_conversations(ONPO(1.0), *about, K=4000, steps=2, seed=0, replicates=20)
    assert np.median(many.distance[-1]) < 0.3 * np.median(told.distance[-1])


def test_what_is_not_predicted_is_told() -> None:
    assert conversation_refusal(ONPO(1.0), [Labelled()], True, "trajectory") == ""
    assert conversation_refusal(INPO(1.0, 0.1), [Pairwise()], True, "trajectory") == ""
    assert "conversation.level is state" in conversation_refusal(ONPO(1.0), [Labelled()], True, "state")
    assert "temperature" in conversation_refusal(ONPO(1.0), [Labelled()], False, "trajectory")
    assert "Pointwise is no loss" in conversation_refusal(SPPO(1.0), [Pointwise()], True, "trajectory")


# ------------------------------------------------------------------------------------------------------ the recipe

QUICK = (
    "model.build.prompts=2", "warmup.training.max_steps=4", "training.max_steps=3", "sampling.K=8", "evaluation.K=2",
    "iterations.count=1", "training.per_device_train_batch_size=64",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "predicted"), [((), True), (("conversation.level=state", "conversation.branches=2"), False)]
)
def test_the_packaged_recipe_is_evaluated_exactly(changes: tuple[str, ...], predicted: bool, tmp_path: Path) -> None:
    """A few steps of it: the gaps of the results are those of the saved policies, and the report tells them."""
    assert main(["train", "tiny-multiturn", *QUICK, *changes, f"output_dir={tmp_path / 'run'}", "--quiet"]) == 0
    found = json.loads((tmp_path / "run/iterations/001/evaluation/results.json").read_bytes())["exact"]
    tiny = TinyModel(symbols=3, length=1, prompts=2, turns=2)
    tree, log_policy = tiny_tree(tiny), np.asarray(found["log_policies"]["current"])
    assert found["gap_last"] == pytest.approx(tree.mean(duality_gap(tree, np.exp(log_policy))), abs=1e-9)
    assert found["exact_play"]["gap_last"] < found["gap_start"]
    assert (found["prediction"] is not None) == predicted == (found["not_predicted"] is None)
    assert "of the exact play" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("conversation.user={kind: script, says: [red]}", "leave conversation.user out"),
        ("conversation.stop=[red]", "leave conversation.stop out"),
        ("conversation.max_tokens=2", "give at least 3"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny-multiturn", *QUICK, change, f"output_dir={tmp_path / 'run'}", "--quiet"]) == 2
    assert message in capsys.readouterr().err
