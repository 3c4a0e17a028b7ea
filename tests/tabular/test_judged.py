"""Judged responses: small files made here, and the AlpacaEval file where it lies beside the repository."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.files import read_game
from nashpo.tabular.judged import BASELINE, read_judged

ALPACA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"

RECORDS = [
    {"prompt": "one", "dataset": "d", "baseline": "text", "responses": {"x": {"text": "t", "p_beats_baseline": 0.8},
                                                                          "y": {"text": "t", "p_beats_baseline": 0.2}}},
    {"prompt": "two", "responses": [{"model": "x", "p_beats_baseline": 0.0}]},
    {"prompt": "three", "responses": {"y": {"p_beats_baseline": 1}, "x": {"p_beats_baseline": 1.0}}},
]  # fmt: skip


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "judged.jsonl"
    path.write_text(lines(RECORDS))
    return path


def test_a_small_file_by_hand(small: Path) -> None:
    judged = read_judged(small)
    game = judged.game
    assert judged.prompts == ("one", "two", "three")
    assert judged.models == game.names == ("x", "y", BASELINE)
    assert game.batch_shape == (3,)
    assert_array_equal(game.mask, [[True] * 3, [True, False, True], [True] * 3])
    assert_allclose(game.weights, 1 / 3, rtol=1e-15)
    # logit .8 - logit .2 = log 4 + log 4 = log 16, so P(x beats y) = 16/17; against the baseline p itself.
    assert_allclose(game.P[0], [[0.5, 16 / 17, 0.8], [1 / 17, 0.5, 0.2], [0.2, 0.8, 0.5]], rtol=1e-14)
    # 0 is clipped to 1e-6; the missing answer neither gains nor loses.
    assert_allclose(game.P[1], [[0.5, 0.5, 1e-6], [0.5] * 3, [1 - 1e-6, 0.5, 0.5]], rtol=1e-9)
    # In "three" both models are clipped to 1 - 1e-6: they tie for the best answer.
    assert_allclose(game.P[2, 0, 1], 0.5, rtol=0)
    assert judged.ties() == 1
    assert game.reward is not None
    assert_allclose(game.reward[0], [np.log(4), -np.log(4), 0.0], rtol=1e-14, atol=1e-15)
    assert_allclose(read_judged(small, clip=0.25).game.P[0, 0, 2], 0.75, rtol=1e-14)


def test_shares_of_models(small: Path) -> None:
    judged = read_judged(small)
    policy = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    shares = judged.model_shares(policy)
    assert list(shares) == list(judged.models)
    assert_allclose(list(shares.values()), [0.5, 1 / 6, 1 / 3], rtol=1e-15)
    # Best answers: their duality gap is zero, as the game is Bradley-Terry.
    assert_allclose(judged.game.payoff(policy).max(axis=-1), 0.5, rtol=1e-15)
    with pytest.raises(ValueError, match=r"shape \(3,\), but prompts x models is \(3, 3\)"):
        judged.model_shares(np.full(3, 1 / 3))


def test_gzip_is_told_by_content_and_read_game_finds_it(small: Path, tmp_path: Path) -> None:
    packed = tmp_path / "judged.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + small.read_bytes()))
    assert_array_equal(read_game(packed).P, read_judged(small).game.P)
    misnamed = tmp_path / "judged.JSONL"
    misnamed.write_bytes(packed.read_bytes())
    assert read_game(misnamed).names == ("x", "y", BASELINE)


def response(p: Any) -> dict[str, Any]:
    return {"prompt": "how?", "responses": {"x": {"p_beats_baseline": p}}}


BAD: dict[str, tuple[str, str]] = {
    "empty": ("", "the file is empty: no judged prompts"),
    "blank": ("\n\n", "the file is empty: no judged prompts"),
    "broken line": (lines(RECORDS[:1]) + '{"prompt": "x", \n', "line 2 is not JSON: "),
    "bare list": ("[1, 2]\n", 'line 1 must be an object with "prompt" (text) and "responses"'),
    "no prompt": ('{"responses": {}}\n', 'line 1 must be an object with "prompt"'),
    "no responses": ('{"prompt": "x"}\n', 'and "responses"'),
    "responses a number": ('{"prompt": "x", "responses": 3}\n', "responses must be an object or a list"),
    "above one": (lines([response(1.5)]), "line 1, prompt 'how?': p_beats_baseline of 'x' is 1.5, outside [0, 1]"),
    "negative": (lines([response(0.5), response(-0.1)]), "line 2, prompt 'how?': p_beats_baseline of 'x' is -0.1"),
    "nan": (lines([response(float("nan"))]), "is nan, outside [0, 1]"),
    "huge": ('{"prompt": "how?", "responses": {"x": {"p_beats_baseline": 1' + "0" * 400 + "}}}", "outside [0, 1]"),
    "null": (lines([response(None)]), "the response of 'x' has no number p_beats_baseline"),
    "text": (lines([response("0.5")]), "has no number p_beats_baseline"),
    "true": (lines([response(True)]), "has no number p_beats_baseline"),
    "model twice": ('{"prompt": "a", "responses": {"x": {"p_beats_baseline": 1}, "x": {"p_beats_baseline": 1}}}\n',
                    "line 1: the key 'x' occurs twice"),
    "model twice in a list": (lines([{"prompt": "a", "responses": [{"model": "x", "p_beats_baseline": 1}] * 2}]),
                              "line 1: the model 'x' occurs twice"),
    "no model": (lines([{"prompt": "a", "responses": [{"p_beats_baseline": 1}]}]),
                 'every response in a list needs a "model"'),
    "baseline among the models": (lines([{"prompt": "a", "responses": {BASELINE: {"p_beats_baseline": 1}}}]),
                                  "has the baseline's name"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_judged(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_bytes_are_refused_in_one_line(small: Path, tmp_path: Path) -> None:
    packed = gzip.compress(small.read_bytes() * 50)
    path = tmp_path / "judged.jsonl.gz"
    for content, message in (
        (packed[: len(packed) // 2], "the gzip file is truncated after line"),
        (packed[:-2], "the gzip file is truncated after line"),
        (packed[:40] + b"\0" * 20 + packed[60:], "the gzip file is damaged after line"),
        (b"\x1f\x8b", "the gzip file is"),
        (b'{"prompt": "\xff"}\n', "is not UTF-8 text"),
        (b"\x80\x05pickle", "is a pickle, which is never loaded"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_judged(path)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("clip", [0.0, 0.5, -1.0, float("nan")])
def test_clip_must_leave_room(small: Path, clip: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 0.5\)"):
        read_judged(small, clip=clip)


@pytest.mark.skipif(not ALPACA.exists(), reason="the AlpacaEval file lies outside the repository")
def test_alpaca_eval() -> None:
    """805 prompts, 13 answers; the published win rates of three models are the means of p (percent, three decimals)."""
    judged = read_judged(ALPACA)
    game = judged.game
    assert game.P.shape == (805, 13, 13)
    assert len(judged.prompts) == 805
    assert judged.models[-1] == BASELINE
    assert game.mask is not None
    assert game.reward is not None
    # 798 prompts have all 12 models, 6 lack one and 1 lacks two.
    assert int(game.mask.sum()) == 798 * 13 + 6 * 12 + 11
    for model, published in (
        ("gpt-3.5-turbo-1106", 9.178),
        ("OpenHermes-2.5-Mistral-7B", 10.340),
        ("vicuna-7b", 4.163),
    ):
        mean = 100 * game.P[:, judged.models.index(model), -1].mean()
        assert_allclose(mean, published, atol=6e-4)  # three printed decimals, and the clipping moves a mean by < 1e-4
    assert judged.ties() == 7
    best = np.eye(13)[np.where(game.mask, game.reward, -np.inf).argmax(axis=-1)]
    assert_allclose(game.payoff(best).max(axis=-1), 0.5, rtol=1e-15)
    shares = judged.model_shares(best)
    assert_allclose(sum(shares.values()), 1.0, rtol=1e-14)
    assert max(shares, key=lambda model: shares[model]) == BASELINE
