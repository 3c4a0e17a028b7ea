"""Win matrices: both orders, symmetrized, each question once, abstentions kept, and a cache that survives a kill."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nashpo.llm.judges.cache import Cache, Keys
from nashpo.llm.judges.interrupted import Interrupted
from nashpo.llm.judges.judge import Judge, Pair, Verdict
from nashpo.llm.judges.matrix import Judged, check_wins, judge_responses
from nashpo.llm.judges.ucla import UCLAAverageScores


class Answers:
    """A judge that answers by a function of the two responses, and counts."""

    name = "answers"

    def __init__(self, answer: Callable[[str, str], Any], antisymmetric: bool = False, version: int = 0) -> None:
        self.answer, self.antisymmetric, self.version = answer, antisymmetric, version
        self.asked: list[Pair] = []
        self.calls = 0

    def describe(self) -> dict[str, Any]:
        return {"judge": "answers", "version": self.version}

    def check(self) -> None: ...

    def close(self) -> None: ...

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.calls += 1
        self.asked += pairs
        found = [self.answer(pair.first, pair.second) for pair in pairs]
        return [v if isinstance(v, Verdict) else Verdict(v, f"said {v}") for v in found]


def by_table(table: dict[str, float]) -> Answers:
    return Answers(lambda first, second: table[first + second])


def test_both_orders_are_asked_and_symmetrized() -> None:
    """p_ab = 0.9, p_ba = 0.3: P_ab = (0.9 + 0.7)/2 = 0.8 and |0.9 + 0.3 − 1| = 0.2. p_ac = 0.2, p_ca = 0.8: P_ac = 0.2
    and 0. p_bc = 1, p_cb = 1: P_bc = 0.5 and 1. The mean asymmetry is 0.4."""
    judge = by_table({"ab": 0.9, "ba": 0.3, "ac": 0.2, "ca": 0.8, "bc": 1.0, "cb": 1.0})
    (judged,) = judge_responses(judge, ["x"], [["a", "b", "c"]])
    wins: Any = judged.wins
    np.testing.assert_allclose(wins, [[0.5, 0.8, 0.2], [0.2, 0.5, 0.5], [0.8, 0.5, 0.5]], atol=1e-15)
    assert judged.asymmetry == pytest.approx(0.4, abs=1e-15)
    assert judged.raw[0] == {
        "i": 0,
        "j": 1,
        "forward": {"probability": 0.9, "raw": "said 0.9"},
        "backward": {"probability": 0.3, "raw": "said 0.3"},
    }
    assert Judged.from_json(json.loads(json.dumps({"prompt_key": "k", **judged.to_json()}))) == judged


def test_random_judges_give_games() -> None:
    """P + Pᵀ = 1 to the last bit: p and 1 − p, rounded, add up to 1."""
    rng = np.random.default_rng(0)
    judge = Answers(lambda first, second: float(rng.uniform() ** 8))
    for judged in judge_responses(judge, list("xyz"), [[f"{k}" for k in range(9)]] * 3):
        P: Any = np.array(judged.wins, dtype=float)
        np.testing.assert_array_equal(P + P.T, 1.0)
        np.testing.assert_array_equal(np.diag(P), 0.5)


def test_equal_texts_are_a_half_and_equal_questions_are_asked_once() -> None:
    judge = Answers(lambda first, second: 0.7 if first < second else 0.1)
    seen: list[int] = []
    judged = judge_responses(
        judge, ["x", "x", [{"role": "user", "content": "x"}]], [["a", "b", "a"]] * 3, progress=seen.append, batch=2
    )
    assert [(p.prompt, p.first, p.second) for p in judge.asked[:2]] == [("x", "a", "b"), ("x", "b", "a")]
    assert len(judge.asked) == 4  # two orders, for each of two different prompts
    assert judged[0] == judged[1]
    assert judged[0].wins == [[0.5, 0.8, 0.5], [pytest.approx(0.2), 0.5, pytest.approx(0.2)], [0.5, 0.8, 0.5]]
    assert judged[0].asymmetry == pytest.approx(0.2)
    assert [(r["i"], r["j"]) for r in judged[0].raw] == [(0, 1), (1, 2)]
    assert seen == [6, 3]  # pairs (i, j)


def test_an_antisymmetric_judge_is_asked_in_one_order() -> None:
    judge = Answers(lambda first, second: {"ab": 0.9, "ac": 0.2, "bc": 0.6}[first + second], antisymmetric=True)
    (judged,) = judge_responses(judge, ["x"], [["b", "a", "c"]])
    assert [(p.first, p.second) for p in judge.asked] == [("a", "b"), ("b", "c"), ("a", "c")]
    np.testing.assert_array_equal(np.array(judged.wins), [[0.5, 1 - 0.9, 0.6], [0.9, 0.5, 0.2], [1 - 0.6, 0.8, 0.5]])
    assert judged.asymmetry is None
    assert judged.raw[0]["forward"] is None
    assert judged.raw[0]["backward"]["probability"] == 0.9


def test_an_abstention_in_one_order_is_never_filled_in() -> None:
    judge = Answers(lambda first, second: None if first + second == "ba" else 0.75)
    (judged,) = judge_responses(judge, ["x"], [["a", "b", "c"]])
    assert judged.wins == [[0.5, None, 0.5], [None, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert judged.asymmetry == 0.5  # of the two pairs that were answered in both orders
    one_order = Answers(lambda first, second: None, antisymmetric=True)
    assert judge_responses(one_order, ["x"], [["a", "b"]])[0].wins == [[0.5, None], [None, 0.5]]


def test_compared_with_others() -> None:
    judge = Answers(lambda first, second: 0.9 if first == "a" else 0.4)
    (judged,) = judge_responses(judge, ["x"], [["a", "b"]], others=[["b", "c", "a"]])
    np.testing.assert_allclose(np.array(judged.wins), [[0.75, 0.75, 0.5], [0.5, 0.5, 0.25]], atol=1e-15)
    with pytest.raises(ValueError, match="2 prompts, 1 lists of responses and 1 lists of others"):
        judge_responses(judge, ["x", "y"], [["a"]], others=[["a"]])


@pytest.mark.parametrize("bad", [1.5, -0.1, math.nan, math.inf, "much"])
def test_what_is_no_probability_is_an_error_with_names(bad: Any) -> None:
    judge = Answers(lambda first, second: bad if first == "b" else 0.5)
    with pytest.raises(
        ValueError, match=r"judge 'answers' answered .* for P\('b' beats 'a'\) on the prompt 'why\?'"
    ) as e:
        judge_responses(judge, ["why?"], [["a", "b"]])
    assert "\n" not in str(e.value)


def test_a_missing_answer_is_an_error() -> None:
    class Short(Answers):
        def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
            return super().compare(pairs)[1:]

    with pytest.raises(ValueError, match="judge 'answers' answered 1 of 2 pairs"):
        judge_responses(Short(lambda first, second: 0.5), ["x"], [["a", "b"]])


@pytest.mark.parametrize(
    "wins", [[[0.4]], [[0.5, 0.7], [0.31, 0.5]], [[0.5, None], [0.5, 0.5]], [[0.5, math.nan], [0.5, 0.5]]]
)
def test_a_matrix_that_is_no_game_is_refused(wins: Any) -> None:
    with pytest.raises(ValueError, match="win matrix"):
        check_wins(wins)


def test_a_set_judge_that_gives_no_game_is_refused() -> None:
    class Constant(Answers):
        def wins(self, answers: Sequence[Sequence[Verdict | None]]) -> list[list[float | None]]:
            return [[0.7] * len(answers) for _ in answers]

    with pytest.raises(ValueError, match=r"win matrix: entries \(0, 0\) and \(0, 0\), 0.7 and 0.7, must sum to 1"):
        judge_responses(Constant(lambda a, b: 0.5), ["x"], [["a", "b"]])


# The cache.


def noisy(seed: int = 0, **options: Any) -> Answers:
    """Answers that no second call would repeat."""
    rng = np.random.default_rng(seed)
    return Answers(lambda first, second: float(rng.uniform()), **options)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    sets = [["a", "b", "c"], ["a", "d"]]
    with Cache(tmp_path / "cache.jsonl") as cache:
        first = judge_responses(noisy(), ["x", "y"], sets, cache=cache, batch=3)
        assert len(cache) == 8
    with Cache(tmp_path / "cache.jsonl") as cache:
        again = noisy(1)
        seen: list[int] = []
        assert judge_responses(again, ["x", "y"], sets, cache=cache, progress=seen.append) == first
        assert (again.calls, seen) == (0, [4])
        judge_responses(again, ["x", "y"], [["a", "b", "c"], ["a", "e"]], cache=cache)
        assert {(p.prompt, p.first, p.second) for p in again.asked} == {("y", "a", "e"), ("y", "e", "a")}
        other = noisy(2, version=1)  # another judge: its answers are its own
        judge_responses(other, ["x", "y"], sets, cache=cache)
        assert len(other.asked) == 8
    text = (tmp_path / "cache.jsonl").read_text()
    assert all(set(json.loads(line)) == {"answers"} for line in text.splitlines())


def test_abstentions_are_asked_again(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache.jsonl") as cache:
        judge_responses(Answers(lambda a, b: None if a == "b" else 0.6), ["x"], [["a", "b"]], cache=cache)
        again = Answers(lambda a, b: 0.2)
        (judged,) = judge_responses(again, ["x"], [["a", "b"]], cache=cache)
    assert [(p.first, p.second) for p in again.asked] == [("b", "a")]
    assert judged.wins[0][1] == pytest.approx(0.7)


def test_what_an_interrupted_judge_had_answered_is_kept(tmp_path: Path) -> None:
    class Gone(Answers):
        def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
            found = super().compare(pairs)
            raise Interrupted("the server is away", {1: found[1], 0: Verdict(None)})

    with Cache(tmp_path / "cache.jsonl") as cache:
        with pytest.raises(Interrupted, match="away"):
            judge_responses(Gone(lambda a, b: 0.3), ["x"], [["a", "b", "c"]], cache=cache)
        again = Answers(lambda a, b: 0.3)
        (judged,) = judge_responses(again, ["x"], [["a", "b", "c"]], cache=cache)
    assert ("b", "a") not in [(p.first, p.second) for p in again.asked]
    assert len(again.asked) == 5
    assert judged.wins[0] == [0.5, 0.5, 0.5]


def test_a_torn_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    """The file that an interrupted run ends with is the one of a run that was not interrupted: the same batches."""
    path, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    judge = Answers(lambda a, b: (ord(a) * 7 + ord(b)) % 10 / 10)
    with Cache(path) as cache:
        whole = judge_responses(judge, ["é"], [["a", "b", "c"]], cache=cache, batch=2)
    data = path.read_bytes()
    starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == ord("\n"))]
    assert len(starts) == 4
    near = {start + step for start in starts for step in (-2, -1, 0, 1)}
    for end in sorted(near.union(range(0, len(data), 40)).intersection(range(len(data) + 1))):
        cut.write_bytes(data[:end])
        again = Answers(judge.answer)
        with Cache(cut) as cache:
            lines = max(number for number, start in enumerate(starts) if start <= end)
            assert len(cache) == 2 * lines
            assert judge_responses(again, ["é"], [["a", "b", "c"]], cache=cache, batch=2) == whole
        assert len(again.asked) == 6 - 2 * lines
        assert cut.read_bytes() == data


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    path.write_text('{"answers": []}\n{"answers": 3}\n')
    with pytest.raises(ValueError, match=r"cache.jsonl, line 2, is no line of a judge's cache"):
        Cache(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache.jsonl"
    key = Keys(noisy())(Pair("x", "a", "b"))
    with Cache(path) as cache:
        cache.put([(key, Verdict(0.25, ["raw"]))])
        before = path.read_bytes()

        class Full:
            """Takes ten bytes, then no more."""

            def __init__(self, file: Any) -> None:
                self.file, self.left = file, 10

            def write(self, data: Any) -> int:
                if not self.left:
                    raise OSError(28, "No space left on device")
                written = int(self.file.write(bytes(data)[: self.left]))
                self.left -= written
                return written

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        writer = cache._writer
        monkeypatch.setattr(cache, "_writer", Full(writer))
        with pytest.raises(OSError, match="No space"):
            cache.put([(key[::-1], Verdict(0.5))])
        assert path.read_bytes() == before
        monkeypatch.setattr(cache, "_writer", writer)
        cache.put([(key[::-1], Verdict(0.5))])
        assert cache.get(key[::-1]) == Verdict(0.5)
        assert cache.get(key) == Verdict(0.25, ["raw"])


WRITER = """
import sys
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.judge import Verdict
with Cache(sys.argv[1]) as cache:
    print(len(cache), flush=True)
    for n in range(10**6):
        cache.put([(bytes([n // 256 % 256, n % 256]) * 8, Verdict(0.5, "x" * 5000))])
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_loses_at_most_its_last_batch(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"0\n"
    while not path.exists() or path.stat().st_size < 50_000:
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    lines = path.read_bytes().count(b"\n")
    with Cache(path) as cache:
        assert len(cache) == lines >= 9
        assert path.read_bytes().endswith(b"\n")


# UCLA's probabilities.


def scored(scores: dict[str, float]) -> Judge:
    """A judge with scores: P = σ(s)."""
    return Answers(lambda a, b: Verdict(1 / (1 + math.exp(-scores[a + b])), {"score": scores[a + b]}))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_ucla_by_hand() -> None:
    """s_ab = 1, s_ba = −½, s_ac = 2, s_ca = −1½, s_bc = 1, s_cb = 0.

    score_a = ((1 + ½) + (2 + 1½))/3 = 5/3, score_b = ((−½ − 1) + (1 − 0))/3 = −1/6, score_c = ((−1½ − 2) + (0 − 1))/3 =
    −3/2. So P_ab = σ(11/6) = 0.862, P_ac = σ(19/6) = 0.960, P_bc = σ(4/3) = 0.791; from the pair itself P_ab would be
    (σ(1) + 1 − σ(−½))/2 = 0.677.
    """
    judge = scored({"ab": 1.0, "ba": -0.5, "ac": 2.0, "ca": -1.5, "bc": 1.0, "cb": 0.0})
    (judged,) = judge_responses(UCLAAverageScores(judge), ["x"], [["a", "b", "c"]])
    P: Any = np.array(judged.wins, dtype=float)
    ab, ac, bc = sigmoid(11 / 6), sigmoid(19 / 6), sigmoid(4 / 3)
    np.testing.assert_allclose(P, [[0.5, ab, ac], [1 - ab, 0.5, bc], [1 - ac, 1 - bc, 0.5]], atol=1e-14)
    np.testing.assert_allclose([ab, ac, bc], [0.862, 0.960, 0.791], atol=5e-4)
    (own,) = judge_responses(judge, ["x"], [["a", "b", "c"]])
    assert own.wins[0][1] == pytest.approx((sigmoid(1) + 1 - sigmoid(-0.5)) / 2, abs=1e-15)
    assert own.asymmetry == judged.asymmetry


def test_ucla_is_twice_as_sharp_and_looks_at_third_responses() -> None:
    rewards = {"a": 0.3, "b": -0.4, "c": 1.1}
    judge = UCLAAverageScores(scored({a + b: rewards[a] - rewards[b] for a in "abc" for b in "abc"}))
    (three,) = judge_responses(judge, ["x"], [["a", "b", "c"]])
    assert three.wins[0][1] == pytest.approx(sigmoid(2 * 0.7), abs=1e-14)
    # Two equal texts: their comparison counts as 0, as asking about equal texts in both orders would give.
    (equal,) = judge_responses(judge, ["x"], [["a", "b", "b"]])
    assert equal.wins[1][2] == 0.5
    (others,) = judge_responses(judge, ["x"], [["a"]], others=[["b", "a"]])
    assert others.wins[0] == [pytest.approx(sigmoid(2 * 0.7), abs=1e-14), 0.5]


def test_ucla_needs_scores_and_keeps_abstentions() -> None:
    with pytest.raises(ValueError, match="'ucla_answers' needs scores of pairs, and 'answers' gives none"):
        judge_responses(UCLAAverageScores(Answers(lambda a, b: 0.5)), ["x"], [["a", "b"]])
    some = Answers(lambda a, b: Verdict(None) if a + b == "ab" else Verdict(0.5, {"score": 0.0}))
    (judged,) = judge_responses(UCLAAverageScores(some), ["x"], [["a", "b", "c", "d"]])
    known = [[p is not None for p in row] for row in judged.wins]
    assert known == [[True, False, False, False], [False, True, False, False], [False, False, True, True]] + [
        [False, False, True, True]
    ]
