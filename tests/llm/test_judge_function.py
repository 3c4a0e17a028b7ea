"""Judges that users bring: Python callables in their several forms, and tables of a known game."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nashpo.llm.judges.config import FORM_NAMES, JUDGES, FunctionConfig, TableConfig
from nashpo.llm.judges.function import FORMS
from nashpo.llm.judges.judge import Pair
from nashpo.llm.judges.matrix import judge_responses
from nashpo.llm.judges.table import TableJudge

SOURCE = '''
import numpy as np
from nashpo.llm.judges.judge import Verdict

def longer(prompts, firsts, seconds):
    return np.array([len(a) / (len(a) + len(b)) for a, b in zip(firsts, seconds)])

def biased(prompts, firsts, seconds):
    return [None if "?" in a else Verdict(0.9, prompt) for prompt, a in zip(prompts, firsts)]

def wrong(prompts, firsts, seconds):
    return [2.0 for _ in prompts]

def short(prompts, firsts, seconds):
    return [0.5]

def nothing(prompts, firsts, seconds):
    return None

def texts_alone(prompts, firsts, seconds):
    return [len(a.strip()) > len(b.strip()) for a, b in zip(firsts, seconds)]

def unknown(prompts, firsts, seconds):
    return [{}[prompt] for prompt in prompts]

def one(prompts):
    return prompts

class Needs:
    def __init__(self, path):
        pass

class Longest:
    """As TRL's BasePairwiseJudge."""

    def judge(self, prompts, completions, shuffle_order=True):
        assert not shuffle_order
        return [-1 if "?" in (a + b) else int(len(b) > len(a)) for a, b in completions]

class Scores:
    """As TRL's PairRMJudge."""

    def judge(self, prompts, completions, shuffle_order=True, return_scores=False, temperature=1.0):
        assert return_scores and not shuffle_order
        return [0.8 if a < b else 0.3 for a, b in completions]

class Third:
    def judge(self, prompts, completions, shuffle_order=True):
        return [2 for _ in prompts]

calls = []

def length_reward(prompts, completions, **columns):
    calls.append(len(completions))
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert all(isinstance(c, str) or c[0]["role"] == "assistant" for c in completions)
    return [None if text == "?" else float(len(text)) for text in texts]

number = 3
'''

PAIRS = [Pair("x", "aa", "bbb"), Pair("x", "bbb", "aa"), Pair("x", "a?", "aa")]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's module, in the working folder."""
    path = tmp_path / "users_judges.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("users_judges", None)


def judge(name: str, form: str = "pairs") -> Any:
    return FunctionConfig(function=f"users_judges:{name}", form=form).build("cpu")


def probabilities(made: Any) -> list[float | None]:
    return [verdict.probability for verdict in made.compare(PAIRS)]


def test_pairs() -> None:
    assert probabilities(judge("longer")) == pytest.approx([0.4, 0.6, 0.5])
    assert probabilities(judge("biased")) == [0.9, 0.9, None]
    assert judge("biased").compare(PAIRS[:1])[0].raw == "x"
    (judged,) = judge_responses(judge("biased"), ["x"], [["a", "b"]])
    assert (judged.wins[0][1], judged.asymmetry) == (0.5, pytest.approx(0.8))


def test_ranks_of_trls_judges() -> None:
    assert probabilities(judge("Longest", "ranks")) == [0.0, 1.0, None]
    assert [v.raw for v in judge("Longest", "ranks").compare(PAIRS)] == [1, 0, -1]
    with pytest.raises(ValueError, match="judge 'users_judges:Third' answered 2; of two responses"):
        judge("Third", "ranks").compare(PAIRS)


def test_probabilities_of_trls_judges() -> None:
    assert probabilities(judge("Scores", "probabilities")) == [0.8, 0.3, 0.8]


def test_rewards_of_trls_reward_functions() -> None:
    made = judge("length_reward", "reward")
    sigma = 1 / (1 + math.exp(1))
    assert probabilities(made) == pytest.approx([sigma, 1 - sigma, 0.5], abs=1e-15)
    assert made.compare(PAIRS)[0].raw == {"rewards": [2.0, 3.0]}
    import users_judges

    assert users_judges.calls == [3, 3]  # each response once
    assert made.antisymmetric
    chat = [{"role": "user", "content": "x"}]
    assert made.compare([Pair(chat, "a", "b")])[0].probability == 0.5
    assert made.compare([Pair("x", "?", "b")])[0].probability is None


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("longest", "pairs", "users_judges has no 'longest'; did you mean 'Longest'"),
        ("number", "pairs", "users_judges:number is no function, which the form 'pairs' needs"),
        ("longer", "ranks", "users_judges:longer has no method judge, which the form 'ranks' needs"),
        ("longer", "pair", "judge.form is 'pair'; did you mean 'pairs'"),
    ],
)
def test_what_cannot_be_called_is_refused(name: str, form: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judge(name, form)


def test_the_forms_of_the_recipe_are_those_that_there_are() -> None:
    assert set(FORM_NAMES) == FORMS.keys()


def test_errors_of_answers() -> None:
    with pytest.raises(
        ValueError, match=r"judge 'users_judges:wrong' answered 2.0 for P\('a' beats 'b'\) on the prompt"
    ):
        judge_responses(judge("wrong"), ["x"], [["a", "b"]])
    with pytest.raises(ValueError, match="judge 'users_judges:short' answered 1 numbers for 3 pairs"):
        judge("short").compare(PAIRS)
    with pytest.raises(ValueError, match="judge 'users_judges:nothing' answered None; it must give a list"):
        judge("nothing").compare(PAIRS)


def test_a_function_that_fails_is_one_line_with_its_place() -> None:
    """Whatever it raises; the line of the function's own file is named, and none where it could not be called."""
    turns = tuple({"role": role, "content": "a"} for role in ("assistant", "user", "assistant"))
    conversations = [Pair([{"role": "user", "content": "x"}], turns, turns)]
    place = (
        SOURCE.splitlines().index("    return [len(a.strip()) > len(b.strip()) for a, b in zip(firsts, seconds)]") + 1
    )
    said = f"judge 'users_judges:texts_alone' failed with AttributeError: .* \\(users_judges.py, line {place}\\)$"
    with pytest.raises(ValueError, match=said):
        judge("texts_alone").compare(conversations)
    with pytest.raises(ValueError, match="judge 'users_judges:unknown' failed with KeyError: 'x' "):
        judge("unknown").compare(PAIRS)
    with pytest.raises(ValueError, match="judge 'users_judges:one' failed with TypeError: .* were given$"):
        judge("one").compare(PAIRS)
    with pytest.raises(ValueError, match="judge.function: users_judges:Needs failed with TypeError: .*'path'$"):
        judge("Needs")


def test_a_module_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_mistake.py").write_text("def f(:\n")
    (tmp_path / "users_failure.py").write_text("\nraise RuntimeError('no licence')\n")
    with pytest.raises(ValueError, match="judge.function: importing 'users_mistake' .* failed with SyntaxError: "):
        FunctionConfig(function="users_mistake:f").build("cpu")
    said = r"failed with RuntimeError: no licence \(users_failure.py, line 2\)$"
    with pytest.raises(ValueError, match=said):
        FunctionConfig(function="users_failure:f").build("cpu")


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="cannot import 'no_such' of 'no_such:f'"):
        FunctionConfig(function="no_such:f").build("cpu")
    with pytest.raises(ValueError, match="judge.function is 'no_such'; it must be module:name"):
        FunctionConfig(function="no_such")


def test_a_changed_module_is_another_judge(module: Path) -> None:
    about = judge("longer").describe()
    assert judge("longer").describe() == about
    assert judge("Longest", "ranks").describe() != about
    module.write_text(SOURCE + "\n")
    assert judge("longer").describe() != about
    assert json.loads(json.dumps(about)) == about


# Tables.

P = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]
Q = [[0.5, 0.4], [0.6, 0.5]]


def test_a_table_plays_its_game(tmp_path: Path) -> None:
    path = tmp_path / "game.json"
    chat = [{"role": "user", "content": "y"}]
    path.write_text(json.dumps({"prompts": ["x", chat], "responses": [["a", "b", "c"], ["b", "é"]], "P": [P, Q]}))
    made: Any = TableConfig(path=str(path)).build("cpu")
    judged = judge_responses(made, ["x", chat, "x"], [["a", "b", "c"], ["é", "b"], ["c", "a", "c"]])
    np.testing.assert_allclose(np.array(judged[0].wins, dtype=float), P, atol=2.0**-53)  # 1 - 0.9 is not 0.1
    assert judged[1].wins == [[0.5, 0.6], [0.4, 0.5]]
    again = np.array(P)[[2, 0, 2]][:, [2, 0, 2]]
    np.testing.assert_allclose(np.array(judged[2].wins, dtype=float), again, atol=2.0**-53)
    assert judged[0].asymmetry is None
    assert judged[0].raw[0] == {"i": 0, "j": 1, "forward": {"probability": 0.9, "raw": [0, 1]}, "backward": None}
    assert (made.index("x", "c"), made.responses(chat)) == (2, ["b", "é"])
    with pytest.raises(ValueError, match=r"the table has no response 'd' to the prompt 'x'; it has 3, as 'a'"):
        made.compare([Pair("x", "a", "d")])
    with pytest.raises(ValueError, match="the table has no game for the prompt 'z'; it has 2 prompts"):
        made.compare([Pair("z", "a", "b")])
    with pytest.raises(ValueError, match="prompts have 2 to 3 responses"):
        _ = made.game


def test_one_table_for_every_prompt(tmp_path: Path) -> None:
    from nashpo.tabular.equilibrium import nash

    np.savez(tmp_path / "game.npz", responses=np.array(["a", "b", "c"]), P=np.array(P))
    made: Any = TableConfig(path=str(tmp_path / "game.npz")).build("cpu")
    assert made.compare([Pair("x", "a", "b"), Pair([1, 2], "a", "b")]) == made.compare([Pair("y", "a", "b")] * 2)
    assert made.game.P.shape == (3, 3)
    np.testing.assert_allclose(P @ nash(made.game).policy, 0.5, atol=1e-9)  # a cycle: everything is best against it


def test_a_table_in_memory() -> None:
    made = TableJudge(["a", "b"], np.array([Q, [[0.5, 1.0], [0.0, 0.5]]]), prompts=["x", "y"])
    assert made.game.P.shape == (2, 2, 2)
    assert made.compare([Pair("y", "a", "b")])[0].probability == 1.0
    assert made.describe() == TableJudge([["a", "b"]] * 2, [Q, [[0.5, 1.0], [0.0, 0.5]]], ["x", "y"]).describe()
    assert made.describe() != TableJudge(["a", "b"], [Q, Q], ["x", "y"]).describe()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"responses": ["a", "b"], "P": [[0.5, 0.6], [0.6, 0.5]]}, r"game.json: P of prompt 0: .*1"),
        ({"responses": ["a"], "P": Q}, r"P of prompt 0 is \(2, 2\), but the prompt has 1 responses"),
        ({"responses": ["a", "a"], "P": Q}, "the response 'a' occurs twice for prompt 0"),
        ({"responses": ["a", "b"], "P": [Q], "prompts": ["x", "y"]}, "2 prompts, 2 lists of responses, 1 tables P"),
        ({"responses": ["a", "b"], "P": [Q, Q], "prompts": ["x", "x"]}, "the prompt .*x.* occurs twice"),
        ({"P": Q}, 'must be .json or .npz with "responses", "P"'),
        ({"responses": ["a", "b"], "P": Q, "prompt": ["x"]}, 'must be .json or .npz with "responses", "P"'),
        ([1], 'must be .json or .npz with "responses", "P"'),
    ],
)
def test_a_table_that_is_no_game_is_refused(tmp_path: Path, held: Any, said: str) -> None:
    (tmp_path / "game.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=said) as raised:
        TableConfig(path=str(tmp_path / "game.json")).build("cpu")
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.json: there is no such file"):
        TableConfig(path=str(tmp_path / "nowhere.json")).build("cpu")
    with pytest.raises(ValueError, match="game.csv: must be .json or .npz"):
        TableConfig(path=str(tmp_path / "game.csv")).build("cpu")


# What all configurations share.


def test_settings_need_no_torch_and_say_what_they_are() -> None:
    from dataclasses import fields

    assert {"table", "function", "pairrm", "ucla_pairrm", "pair_lm", "reward_model", "gpm", "api"} == JUDGES.keys()
    for config in JUDGES.values():
        assert all(field.metadata.get("help") for field in fields(config)), config
    code = "import sys, nashpo.llm.judges.config, nashpo.llm.judges.matrix; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
