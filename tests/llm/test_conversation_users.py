"""The other side of a conversation: scripts, tables of known probabilities, functions and models."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nashpo.llm.conversation.user import Dialogue
from nashpo.llm.conversation.users.config import (
    USERS,
    FunctionUserConfig,
    ModelUserConfig,
    ScriptConfig,
    TableUserConfig,
)
from nashpo.llm.conversation.users.draws import derived, uniform
from nashpo.llm.conversation.users.script import Script
from nashpo.llm.conversation.users.table import TableUser
from nashpo.llm.engines.config import ServerConfig, TransformersConfig
from nashpo.llm.recipe.parsing import Tagged

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def dialogue(*turns: str, prompt: Any = "Hi", key: str = "k") -> Dialogue:
    """Turns by turns the assistant's and the other side's."""
    roles = ("assistant", "user")
    return Dialogue(key, prompt, tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(turns)))


def said(user: Any, *dialogues: Dialogue, seed: int = 0) -> list[str | None]:
    return [None if message is None else message["content"] for message in user.reply(dialogues, seed)]


# ------------------------------------------------------------------------------------------------------------ scripts


def test_a_script_says_its_texts_in_turn_and_ends() -> None:
    user = ScriptConfig(says=("Why?", "Sure?"), role="tool").build("cpu")
    talks = [dialogue("a"), dialogue("a", "Why?", "b"), dialogue("a", "Why?", "b", "Sure?", "c")]
    assert user.reply(talks, 0) == [{"role": "tool", "content": "Why?"}, {"role": "tool", "content": "Sure?"}, None]
    assert user.describe() != ScriptConfig(says=("Why?", "Really?"), role="tool").build("cpu").describe()
    assert user.describe() != ScriptConfig(says=("Why?", "Sure?")).build("cpu").describe()


def test_a_script_of_a_file_has_texts_for_each_prompt(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    rows = [{"prompt": "Hi", "says": ["Why?"]}, {"prompt": CHAT[:1] + [{"role": "user", "content": "Ho"}], "says": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    user: Any = ScriptConfig(path=str(path)).build("cpu")
    # A text, the same as a user's message, and beside a system's message are one prompt.
    chats = [dialogue("a", prompt=prompt) for prompt in ("Hi", CHAT[1:], CHAT, "Ho")]
    assert said(user, *chats) == ["Why?", "Why?", "Why?", None]
    with pytest.raises(ValueError, match=r"script.jsonl: there is no row for the prompt 'Hu'"):
        user.check_prompts(["Hi", "Hu"])
    before = user.describe()
    path.write_text(path.read_text().replace("Why?", "Why not?"))
    assert Script.read(path).describe() != before


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"prompt": "a", "says": "b"}', "row 0: says is 'b'; it must be a list of texts"),
        ('{"prompt": "a", "says": ["b", ""]}', "row 0: says is"),
        ('{"prompt": "a"}', "row 0: says is missing; it must be a list of texts"),
        ('{"says": ["b"]}', "row 0: there is no prompt"),
        ('{"prompt": "a", "says": ["b"]}\n{"prompt": "a", "says": ["c"]}', "row 1: the same prompt stands"),
        ("{", "line 1: no JSON"),
    ],
)
def test_wrong_scripts_are_refused_with_their_row(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "script.jsonl").write_text(text)
    with pytest.raises(ValueError, match="script.jsonl") as caught:
        Script.read(tmp_path / "script.jsonl")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- tables


def table(**changes: Any) -> dict[str, Any]:
    """Two prompts, two answers (one of them empty), three replies, two turns that are answered."""
    rng = np.random.default_rng(0)
    first = np.array([[[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], [[0.1, 0.0, 0.9], [1.0, 0.0, 0.0]]])
    second = rng.dirichlet(np.ones(3), size=(2, 2, 3, 2))
    made = {
        "prompts": ["p", "q"],
        "answers": ["", "yes"],
        "replies": ["red", "green", "blue"],
        "probabilities": [first.tolist(), second.tolist()],
    }
    return {**made, **changes}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "user.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_draws_of_a_table_have_its_probabilities(written: Callable[[Any], Path]) -> None:
    """Each of 4 distributions is tested once by χ² with 2 degrees of freedom at 27.6, of probability 1e-6 under the
    table; the draws are seeded, so that the test gives the same every time."""
    user = TableUserConfig(path=str(written(table()))).build("cpu")
    known = table()["probabilities"]
    count = 10_000
    cases = [
        (("",), "p", known[0][0][0]),
        (("yes",), "p", known[0][0][1]),
        (("",), "q", known[0][1][0]),
        (("yes", "blue", ""), "q", known[1][1][1][2][0]),
    ]
    for turns, prompt, probabilities in cases:
        drawn = said(user, *(dialogue(*turns, prompt=prompt, key=f"{turns}{n}") for n in range(count)), seed=3)
        seen = np.array([drawn.count(reply) for reply in ("red", "green", "blue")])
        expected = count * np.array(probabilities)
        assert (seen[expected == 0] == 0).all()
        some = expected > 0
        assert ((seen - expected)[some] ** 2 / expected[some]).sum() < 27.6


def test_a_draw_follows_from_seed_and_key_alone(written: Callable[[Any], Path]) -> None:
    user = TableUserConfig(path=str(written(table()))).build("cpu")
    talks = [dialogue("", prompt="p", key=str(n)) for n in range(200)]
    first = said(user, *talks, seed=5)
    assert said(user, *reversed(talks), seed=5) == first[::-1]
    assert said(user, talks[7], seed=5) == [first[7]]
    assert said(user, *talks, seed=6) != first
    assert said(user, dialogue("", "red", "yes", "green", "", prompt="p")) == [None]  # after the last turn that it has


def test_replies_of_probability_0_are_never_drawn(
    written: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the ends of [0, 1) too, and where rounding leaves the sum below 1."""
    first = [[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.1, 0.9 - 1e-10, 0.0], [0.0, 0.0, 1.0]]]
    user = TableUserConfig(path=str(written(table(probabilities=[first])))).build("cpu")
    for number, wanted in ((0.0, ["green", "red", "red", "blue"]), (1 - 2**-53, ["green", "red", "green", "blue"])):
        monkeypatch.setattr("nashpo.llm.conversation.users.table.uniform", lambda seed, key, u=number: u)
        assert said(user, *(dialogue(answer, prompt=p) for p in "pq" for answer in ("", "yes"))) == wanted


def test_uniform_numbers_are_uniform() -> None:
    """Kolmogorov's statistic over 20,000 keys at 1.95, of probability 1e-3 for uniform numbers; seeded."""
    numbers = np.sort([uniform(0, str(n)) for n in range(20_000)])
    assert numbers[0] >= 0
    assert numbers[-1] < 1
    places = np.arange(1, len(numbers) + 1) / len(numbers)
    distance = max(np.abs(places - numbers).max(), np.abs(places - 1 / len(numbers) - numbers).max())
    assert distance * len(numbers) ** 0.5 < 1.95
    assert derived(0, "a") != derived(1, "a") != derived(1, "b")


def test_a_table_is_described_by_its_content(written: Callable[[Any], Path]) -> None:
    first = TableUser.read(written(table())).describe()
    assert TableUser.read(written(table())).describe() == first
    assert TableUser.read(written(table(replies=["red", "green", "white"]))).describe() != first
    user = TableUser.read(written(table()))
    assert [array.shape for array in user.probabilities] == [(2, 2, 3), (2, 2, 3, 2, 3)]
    with pytest.raises(ValueError, match="has no prompt 'r'; it has 2, as"):
        user.check_prompts(["p", "r"])
    with pytest.raises(ValueError, match="has no answer 'no'; it has 2"):
        said(user, dialogue("no", prompt="p"))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"probabilities": [[[[0.5, 0.3, 0.1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]]]}, "add up to 0.9 at [0, 0], not"),
        ({"probabilities": [[[[1.5, -0.5, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]]]}, "hold -0.5, which is no"),
        ({"probabilities": [[[1, 0, 0]]]}, "after turn 1 have the shape (1, 3), not (2, 2, 3)"),
        ({"probabilities": [[["x"]]]}, "must be nested lists of numbers"),
        ({"probabilities": []}, "probabilities is empty"),
        ({"probabilities": None}, "prompts and probabilities must be lists"),
        ({"replies": ["red", "red", "blue"]}, "the reply 'red' occurs twice"),
        ({"replies": ["red", "", "blue"]}, "a reply is empty"),
        ({"answers": "yes"}, "answers must be a list of texts"),
        ({"answer": 1}, "unknown key 'answer'; did you mean 'answers'?"),
        ({"prompts": ["p", [{"role": "user", "content": "p"}]]}, "the prompt 'p' occurs twice"),
    ],
)
def test_wrong_tables_are_refused(written: Callable[[Any], Path], changes: dict[str, Any], wanted: str) -> None:
    path = written(table(**changes))
    with pytest.raises(ValueError) as caught:
        TableUser.read(path)
    assert str(caught.value).startswith(str(path))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_lacks_a_key_or_is_none_is_refused(written: Callable[[Any], Path]) -> None:
    held = table()
    del held["replies"]
    with pytest.raises(ValueError, match="replies is missing; a table has prompts, answers, replies, probabilities"):
        TableUser.read(written(held))
    with pytest.raises(ValueError, match="must be a JSON object with prompts, answers, replies, probabilities"):
        TableUser.read(written([1]))


def test_a_table_of_texts_knows_prompts_that_are_messages(written: Callable[[Any], Path]) -> None:
    """As `prompts.chat` makes them of texts; and the other way round."""
    user = TableUserConfig(path=str(written(table()))).build("cpu")
    forms = ["p", [{"role": "user", "content": "p"}], [CHAT[0], {"role": "user", "content": "p"}]]
    assert said(user, *(dialogue("", prompt=form) for form in forms)) == said(user, dialogue("", prompt="p")) * 3
    held = table(prompts=[[{"role": "user", "content": text}] for text in "pq"])
    TableUserConfig(path=str(written(held))).look(["p", *forms], 2)


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file; conversation.user.path names the table"):
        TableUserConfig(path=str(tmp_path / "none.json")).build("cpu")


# ---------------------------------------------------------------------------------------------------------- functions

SOURCE = """
calls = []

def curious(conversations, seeds):
    calls.append((conversations, seeds))
    ends = [c[-1]["content"] for c in conversations]
    return [None if end == "bye" else f"why {end}? {seed % 7}" for end, seed in zip(ends, seeds)]

class Tool:
    reproducible = False

    def __call__(self, conversations, seeds):
        return [{"role": "tool", "content": str(len(c))} for c in conversations]

def few(conversations, seeds):
    return ["a"]

def text(conversations, seeds):
    return "no list"

def number_in_list(conversations, seeds):
    return [3 for _ in conversations]

def empty(conversations, seeds):
    return ["" for _ in conversations]

def own_role(conversations, seeds):
    return [{"role": "assistant", "content": "a"} for _ in conversations]

def broken(conversations, seeds):
    return {}["no such"]

class Needs:
    def __init__(self, path):
        pass

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module with users, in the working folder."""
    path = tmp_path / "my_users.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("my_users", None)


def test_a_function_is_given_conversations_and_seeds(module: Path) -> None:
    user = FunctionUserConfig(function="my_users:curious", role="user").build("cpu")
    talks = [dialogue("a", key="1"), dialogue("a", prompt=CHAT, key="2"), dialogue("a", "b", "bye")]
    first = said(user, *talks, seed=1)
    assert first[2] is None
    assert str(first[0]).startswith("why a? ")
    import my_users

    ((conversations, seeds),) = my_users.calls
    assert conversations[0] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
    assert conversations[1] == [*CHAT, {"role": "assistant", "content": "a"}]
    assert seeds == [derived(1, "1"), derived(1, "2"), derived(1, "k")]
    assert said(user, *talks[::-1], seed=1) == first[::-1]
    assert said(user) == []
    assert len(my_users.calls) == 2  # an empty call is none
    assert user.shared
    assert user.describe()["reproducible"]


def test_a_function_may_answer_messages_and_is_known_by_its_source(module: Path) -> None:
    user = FunctionUserConfig(function="my_users:Tool").build("cpu")
    assert user.reply([dialogue("a", "b", "c")], 0) == [{"role": "tool", "content": "4"}]
    before = user.describe()
    assert not before["reproducible"]
    module.write_text(SOURCE + "\n# changed\n")
    assert user.describe() != before


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("few", "user 'my_users:few' gave 1 answers to 2 conversations"),
        ("text", "answered 'no list'; it must give a list, one per conversation"),
        ("number_in_list", "answered 3; an answer is a text"),
        ("empty", "an answer is a text that is not empty"),
        ("own_role", "role (not assistant)"),
        ("broken", "user 'my_users:broken' failed with KeyError: 'no such' (my_users.py, line PLACE)"),
    ],
)
def test_wrong_answers_of_a_function_are_refused(module: Path, name: str, wanted: str) -> None:
    user = FunctionUserConfig(function=f"my_users:{name}").build("cpu")
    with pytest.raises(ValueError) as caught:
        user.reply([dialogue("a"), dialogue("b")], 0)
    assert wanted.replace("PLACE", str(SOURCE.splitlines().index('    return {}["no such"]') + 1)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_functions_that_are_not_there_are_refused(module: Path) -> None:
    with pytest.raises(ValueError, match="conversation.user.function: cannot import 'no_such' of 'no_such:f'"):
        FunctionUserConfig(function="no_such:f").build("cpu")
    with pytest.raises(ValueError, match="my_users has no 'curous'; did you mean 'curious'"):
        FunctionUserConfig(function="my_users:curous").build("cpu")
    with pytest.raises(
        ValueError, match="^conversation.user.function: my_users:Needs failed with TypeError: .*'path'$"
    ):
        FunctionUserConfig(function="my_users:Needs").build("cpu")
    with pytest.raises(ValueError, match="conversation.user.function: my_users:number is no function"):
        FunctionUserConfig(function="my_users:number").build("cpu")
    with pytest.raises(ValueError, match=r"conversation.user.function = 'no_such:f': there is no module no_such"):
        FunctionUserConfig(function="no_such:f").look([], 2)
    for settings in (FunctionUserConfig(function="my_users:curious"), ModelUserConfig(path="org/model")):
        with pytest.raises(ValueError, match="reads text, but prompt 1 of 2 is token ids"):
            settings.look(["Hi", [1, 2]], 2)
    with pytest.raises(ValueError, match="begins with token ids"):
        FunctionUserConfig(function="my_users:curious").build("cpu").reply([dialogue("a", prompt=[1, 2])], 0)


# ------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Any], byte_tokenizer: Callable[..., Any]
) -> Path:
    made = tmp_path_factory.mktemp("user") / "model"
    tiny_llama(seed=1, max_position_embeddings=128, initializer_range=0.3).save_pretrained(made)
    byte_tokenizer(begin=False, template=TEMPLATE).save_pretrained(made)
    return made


def model(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"path": str(folder), "instruction": "{conversation}", "end": "\x00"}
    settings["sampling"] = TransformersConfig(K=1, max_new_tokens=4, batch_size=3)
    return ModelUserConfig(**{**settings, **changes}).build("cpu")


def test_a_model_answers_by_seed_and_key_and_gives_its_weights_back(folder: Path) -> None:
    user = model(folder)
    talks = [dialogue(f"answer {n}", key=f"key {n}") for n in range(5)]
    first = user.reply(talks, 0)
    assert {message["role"] for message in first if message is not None} == {"user"}
    assert user._loaded.policies._free  # the weights are held
    user.close()
    assert not user._loaded.policies._free
    assert user.reply(talks[::-1], 0) == first[::-1]
    assert user.reply(talks, 1) != first
    assert user.reply([dialogue("answer 0", key="other")], 0) != first[:1]


def test_a_model_is_shown_the_conversation_and_may_end_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = model(folder, instruction="{conversation} {x}", end="STOP", role="tool")
    user.check()
    from nashpo.llm.engines.engine import Completion

    asked = []
    texts = iter(["  more \n", "I STOP.", " \n"])

    def sample(policy: Any, prompts: Any, seed: int) -> list[tuple[Completion, ...]]:
        assert prompts  # weights are not read for nothing
        asked.extend(prompts)
        return [(Completion((5,), True, next(texts)),) for _ in prompts]

    monkeypatch.setattr(user._loaded.engine, "sample", sample)
    long = dialogue("x" * 300, key="long")
    found = user.reply([dialogue("a", "b", "c", prompt=CHAT), long, dialogue("a"), dialogue("a")], 0)
    assert found == [{"role": "tool", "content": "more"}, None, None, None]
    shown = "system: Be brief.\n\nuser: Hi\n\nassistant: a\n\nuser: b\n\nassistant: c {x}"
    assert asked[0].text == [{"role": "user", "content": shown}]
    assert asked[0].key == "k"
    tokenizer = user._read.encoder.tokenizer
    assert tokenizer.decode(list(asked[0].ids)) == f"[user] {shown}\n[assistant] "
    assert user.counts["too_long"] == 1
    assert len(asked) == 3  # what does not fit the model is not asked
    assert user.reply([long], 0) == [None]
    assert user.reply([], 0) == []
    assert len(asked) == 3


def test_a_model_that_could_never_be_asked_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Behind the shortest prompt and an empty answer: `[user] user: Hi`, …, of 128 positions."""
    asked = len("[user] user: Hi\n\nassistant: \n[assistant] ")

    def look(new: int, *prompts: Any, **changes: Any) -> str:
        settings = {"instruction": "{conversation}", "sampling": TransformersConfig(K=1, max_new_tokens=new), **changes}
        return ModelUserConfig(path=str(folder), **settings).look(prompts, 2)

    assert look(128 - asked, "x" * 300, "Hi", "Hello") == ""
    with pytest.raises(ValueError) as caught:
        look(129 - asked, "x" * 300, "Hi", "Hello")
    told = str(caught.value)
    assert told.startswith(
        f"conversation.user.sampling.max_new_tokens = {129 - asked} does not fit the 128 positions of"
    )
    assert f"behind a question of {asked} tokens, the shortest that there can be" in told
    assert f"lower it well below {128 - asked}" in told
    assert "\n" not in told
    with pytest.raises(ValueError, match=r"conversation\.user\.sampling\.max_new_tokens = 600 does not fit"):
        model(folder, sampling=TransformersConfig(K=1, max_new_tokens=600)).check()  # of a model on the hub too
    with pytest.raises(ValueError, match=r"shorten conversation\.user\.instruction"):
        look(4, "Hi", instruction="x" * 200 + "{conversation}")
    user = model(folder)
    assert user.reply([dialogue("x" * 300)], 0) == [None]
    assert (
        "1 of 1 conversations are too long for the other side and end: with conversation.user.sampling.max"
        in caplog.text
    )
    assert "max_new_tokens = 4 they do not fit the 128 positions" in caplog.text


def test_a_model_is_described_by_its_weights_and_settings(
    folder: Path, tmp_path: Path, tiny_llama: Callable[..., Any], byte_tokenizer: Callable[..., Any]
) -> None:
    first = model(folder).describe()
    assert model(folder, sampling=TransformersConfig(K=1, max_new_tokens=4, batch_size=9)).describe() == first
    assert first["reproducible"]
    for changed in (
        {"instruction": "? {conversation}"},
        {"end": "STOP"},
        {"sampling": TransformersConfig(K=1, max_new_tokens=5)},
    ):
        assert model(folder, **changed).describe() != first
    other = tmp_path / "other"
    tiny_llama(seed=2, max_position_embeddings=128).save_pretrained(other)
    byte_tokenizer(begin=False, template=TEMPLATE).save_pretrained(other)
    assert model(other).describe()["weights"] != first["weights"]
    assert json.dumps(first)


def test_a_server_is_asked_by_one_process(folder: Path) -> None:
    assert not model(folder).shared
    assert model(folder, sampling=ServerConfig(K=1, url="http://127.0.0.1:9/v1")).shared


def test_models_that_are_not_there_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^conversation.user.path: there is no folder") as caught:
        model(tmp_path / "none").check()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^conversation.user.tokenizer = .*there is no such folder"):
        model(folder, tokenizer=str(tmp_path / "none")).check()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="^conversation.user.path: no tokenizer at"):
        model(tmp_path / "empty").check()


# ----------------------------------------------------------------------------------------------------------- settings


def read(value: Any) -> Any:
    place = "conversation.user"
    return Tagged("kind", "nashpo.llm.conversation.users.config:USERS").read(value, place)


def test_every_setting_has_a_help_and_a_model_draws_one_answer() -> None:
    from dataclasses import fields

    assert {name for name, kind in USERS.items() if all(f.metadata.get("help") for f in fields(kind))} == set(USERS)
    assert read({"kind": "model", "path": "m", "sampling": "vllm"}).sampling.K == 1
    assert read({"kind": "model", "path": "m", "sampling": {"max_new_tokens": 9}}).sampling == TransformersConfig(
        K=1, max_new_tokens=9
    )


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"kind": "scrpt"}, "conversation.user.kind = 'scrpt' is unknown; did you mean 'script'?"),
        ({}, "conversation.user.kind is missing; known: script, table, function, model"),
        ({"kind": "script"}, "a script needs exactly one of says and path, and none is given"),
        ({"kind": "script", "says": ["a"], "path": "b"}, "and both are given"),
        ({"kind": "script", "says": []}, "conversation.user.says is []; it must be a list of texts"),
        ({"kind": "script", "says": ["a"], "role": "assistant"}, "conversation.user.role is 'assistant'"),
        ({"kind": "table"}, "conversation.user.path is missing"),
        ({"kind": "function", "function": "f"}, "conversation.user.function is 'f'; it must be module:name"),
        ({"kind": "model", "path": "m", "sampling": {"K": 2}}, "conversation.user.sampling.K = 2: the other side"),
        ({"kind": "model", "path": "m", "instruction": "ask"}, "it must be a text with {conversation} in it, once"),
        ({"kind": "model", "path": "m", "sampling": {"engine": "vlm"}}, "did you mean 'vllm'?"),
        ({"kind": "model", "path": "m", "end": ""}, "conversation.user.end is ''"),
    ],
)
def test_wrong_settings_are_one_line(value: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(value)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
