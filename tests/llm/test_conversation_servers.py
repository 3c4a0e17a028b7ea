"""Conversations whose answers, or whose other side's, come from a server: token ids and text, against imitations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_world import Policy, context
from killing import committed, differences
from servers import Asked, Loopback, Reply, quick
from test_loop_conversations import TWO_TURNS
from test_loop_rules import recipe

from nashpo.llm.conversation.levels import spans
from nashpo.llm.conversation.rollout import ConversationEngine, Limits
from nashpo.llm.conversation.turns import TurnWriter
from nashpo.llm.conversation.user import User
from nashpo.llm.conversation.users.config import ModelUserConfig
from nashpo.llm.conversation.users.script import Script
from nashpo.llm.encoding import Encoder
from nashpo.llm.engines.config import RemoteConfig, ServerConfig, TextServerConfig
from nashpo.llm.engines.engine import Completion
from nashpo.llm.loop.machine import train
from nashpo.llm.loop.messages import RunStopped
from nashpo.llm.prompts import Prompt

END, LONGEST = 1, 6
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHATS = (
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Ho"}],
)
TEXTS = ("Hello?", "And you?")
SAID = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: Callable[..., Any]) -> Any:
    return byte_tokenizer(template=TEMPLATE)


def words(seed: int) -> tuple[str, bool]:
    """What an imitated server says: 0 to LONGEST letters, and whether it ended; cut ones are of LONGEST letters."""
    length = seed % (LONGEST + 1)
    return SAID[seed % 20 : seed % 20 + length], length < LONGEST


def ids_server(tokenizer: Any) -> Callable[[Asked], Any]:
    """As vLLM answers."""

    def answer(asked: Asked) -> Any:
        text, ended = words(asked.body["seed"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [END] * ended
        choice = {"finish_reason": "stop" if ended else "length", "stop_reason": None, "token_ids": ids}
        return {"choices": [{**choice, "text": text, "prompt_token_ids": asked.body["prompt"]}]}

    return answer


def text_server(asked: Asked) -> Any:
    """As `transformers serve` answers, on both of its paths."""
    text, ended = words(asked.body["seed"])
    reason = "stop" if ended else "length"
    said = {"message": {"content": text}} if "chat" in asked.path else {"text": text}
    return {"choices": [{**said, "finish_reason": reason}]}


def engine(
    config: RemoteConfig,
    tokenizer: Any,
    user: User | None = None,
    draws: tuple[int, ...] = (3, 2, 1),
    **limits: Any,
) -> ConversationEngine:
    inner: Any = config.build(context(tokenizer, (END,), 259))
    inner.client.waits = quick()
    writer = TurnWriter(Encoder(tokenizer, (END,)), "|{text}|")
    return ConversationEngine(
        inner, user or Script(("Why?", "Sure?"), "user"), writer, draws, Limits(LONGEST, **limits), {}
    )


def prompts(tokenizer: Any, texts: Sequence[Any]) -> list[Prompt]:
    encoder = Encoder(tokenizer, (END,))
    return [Prompt.of(text, encoder.prompt(text)) for text in texts]


POLICY = Policy(where=Path("/policies/one"))


def sampled(made: ConversationEngine, found: Sequence[Prompt]) -> list[tuple[Completion, ...]]:
    rows = made.sample(POLICY, found, 5)
    assert all(len(row) == 6 for row in rows)
    # Some ended at once, some were cut: the ends of answers are of all kinds.
    assert {one.finished for row in rows for one in row} == {True, False}
    assert any(turn["content"] == "" for row in rows for one in row for turn in one.turns or ())
    return rows


@pytest.mark.parametrize("texts", [CHATS, TEXTS], ids=["chats", "texts"])
def test_a_server_of_ids_reads_what_is_scored(tokenizer: Any, texts: Sequence[Any]) -> None:
    """Every answer was drawn behind the very tokens that stand before it, each request with a seed of its own."""
    with Loopback(ids_server(tokenizer)) as server:
        config = ServerConfig(K=1, url=server.url, max_new_tokens=LONGEST)
        made, found = engine(config, tokenizer), prompts(tokenizer, texts)
        rows = sampled(made, found)
        asked = [(tuple(a.body["prompt"]), a.body["seed"]) for a in server.asked]
        again = engine(config, tokenizer).sample(POLICY, found[::-1], 5)
    assert again[::-1] == rows
    assert made.shared
    assert made.kind == "ids"
    assert not made.describe()["reproducible"]
    assert len(asked) == len({seed for _, seed in asked}) == len(found) * (3 + 6 + 6)
    read = {ids for ids, _ in asked}
    for prompt, row in zip(found, rows, strict=True):
        for one in row:
            assert one.turns is not None
            assert len(spans(one)) == 3
            assert not one.retokenized
            for (begin, end), turn in zip(spans(one), one.turns[::2], strict=True):
                assert (*prompt.ids, *one.ids[:begin]) in read
                assert tokenizer.decode(one.ids[begin:end], skip_special_tokens=True) == turn["content"]
                assert end - begin <= LONGEST
    if texts is CHATS:  # the template closes answers by the end token, that of a cut answer is not scored
        for prompt, row in zip(found, rows, strict=True):
            for one in row:
                whole = tokenizer.apply_chat_template(
                    [*prompt.text, *(one.turns or ())], tokenize=True, return_dict=False
                )
                closed = [*prompt.ids, *one.ids] + [END] * (not one.finished)
                assert list(whole)[: len(closed)] == closed


def test_a_server_of_text_is_sent_the_messages(tokenizer: Any) -> None:
    with Loopback(text_server) as server:
        config = TextServerConfig(K=1, url=server.url, max_new_tokens=LONGEST)
        made, found = engine(config, tokenizer), prompts(tokenizer, CHATS)
        rows = sampled(made, found)
        sent = [a.body["messages"] for a in server.asked]
    assert {a.path for a in server.asked} == {"/v1/chat/completions"}
    assert (made.kind, made.shared, made.counts["ended_at_once"] > 0) == ("text", True, True)
    for prompt, row in zip(found, rows, strict=True):
        for one in row:
            assert one.retokenized
            assert one.turns is not None
            assert all([*prompt.text, *one.turns[:n]] in sent for n in (0, 2, 4))
            assert len(spans(one)) == 3


def test_a_server_of_text_reads_the_end_tokens_of_plain_conversations(tokenizer: Any) -> None:
    """Tokenized, what it is sent are the very tokens that stand before the answer: an answer that ended is closed by
    the end token there too, one that was cut is not."""
    with Loopback(text_server) as server:
        config = TextServerConfig(K=1, url=server.url, max_new_tokens=LONGEST)
        found = prompts(tokenizer, TEXTS)
        rows = sampled(engine(config, tokenizer), found)
        read = {tuple(tokenizer(a.body["prompt"])["input_ids"]) for a in server.asked}
    assert {a.path for a in server.asked} == {"/v1/completions"}
    for prompt, row in zip(found, rows, strict=True):
        for one in row:
            assert all((*prompt.ids, *one.ids[:begin]) in read for begin, _ in spans(one))


def test_an_empty_answer_ends_where_the_template_prints_none(byte_tokenizer: Callable[..., Any]) -> None:
    strict = TEMPLATE.replace(
        "[{{ m.role }}]", "{% if not m.content %}{{ raise_exception('empty') }}{% endif %}[{{ m.role }}]"
    )
    tokenizer = byte_tokenizer(template=strict)
    with Loopback(ids_server(tokenizer)) as server:
        config = ServerConfig(K=1, url=server.url, max_new_tokens=LONGEST)
        rows = engine(config, tokenizer, draws=(12, 1, 1)).sample(POLICY, prompts(tokenizer, CHATS), 5)
    assert {len(one.turns or ((),)) for row in rows for one in row} == {1, 3, 5}
    for row in rows:
        for one in row:
            *earlier, last = [turn["content"] for turn in one.turns or ({"content": one.text},)][::2]
            assert all(earlier)
            assert len(earlier) == 2 or last == ""


def test_budgets_and_stop_texts_hold_behind_a_server(tokenizer: Any) -> None:
    with Loopback(ids_server(tokenizer)) as server:
        config = ServerConfig(K=1, url=server.url, max_new_tokens=LONGEST)
        short = engine(config, tokenizer, behind=40, stop=("Sure",)).sample(POLICY, prompts(tokenizer, CHATS), 5)
        none = engine(config, tokenizer, behind=LONGEST).sample(POLICY, prompts(tokenizer, CHATS), 5)
        asked = len(server.asked)
    assert {len(one.turns or ()) for row in short for one in row} <= {0, 3}
    assert all(len(one.ids) <= 40 for row in short for one in row)
    assert all(one.turns is None for row in none for one in row)
    assert asked <= 2 * (3 + 6) + 2 * 3  # the leaves below what ended are not asked for


# ------------------------------------------------------------------------------------------- a model as the other side


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Any], tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("user") / "model"
    tiny_llama(seed=1).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.mark.parametrize("kind", ["ids", "text"])
def test_a_model_on_a_server_is_the_other_side(tokenizer: Any, folder: Path, kind: str) -> None:
    """Both sides on servers; the other one sees the conversation as it stands, and nothing of a later turn."""
    says = ids_server(tokenizer) if kind == "ids" else text_server
    with Loopback(ids_server(tokenizer)) as server, Loopback(says) as other:
        shape: Any = {"ids": ServerConfig, "text": TextServerConfig}[kind]
        sampling = shape(K=1, url=other.url, max_new_tokens=LONGEST, retries=0, concurrency=1)
        user = ModelUserConfig(path=str(folder), sampling=sampling, instruction="Go on:\n{conversation}").build("cpu")
        user.check()
        made = engine(ServerConfig(K=1, url=server.url, max_new_tokens=LONGEST), tokenizer, user, (12, 1, 1))
        found = prompts(tokenizer, CHATS)
        rows = made.sample(POLICY, found, 5)
        assert made.sample(POLICY, found, 5) == rows
        asked = [a.body for a in other.asked]
        made.close()
    assert made.shared
    assert {body["model"] for body in asked} == {str(folder)}
    lengths = [len(one.turns or ((),)) for row in rows for one in row]
    assert {1, 3, 5} == set(lengths)  # an empty answer of the other side ends a conversation
    seen = [tokenizer.decode(body["prompt"]) if kind == "ids" else body["messages"][0]["content"] for body in asked]
    one = next(one for row in rows for one in row if len(one.turns or ()) == 5)
    assert one.turns is not None
    for n in (1, 3):
        shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in one.turns[:n])
        assert any(text.removesuffix("[assistant]").endswith(shown) for text in seen)


def test_another_sides_server_that_is_away_is_one_line_before_any_work(tokenizer: Any, folder: Path) -> None:
    with Loopback(text_server) as server:
        url = server.url
    sampling = ServerConfig(K=1, url=url, max_new_tokens=LONGEST, retries=0, patience=0.0)
    with pytest.raises(ValueError, match=url) as caught:
        ModelUserConfig(path=str(folder), sampling=sampling).build("cpu").check()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- a whole run


def tiny(asked: Asked) -> dict[str, Any]:
    """A word of the tiny model's two, or its end token."""
    ids = [[0], [1], [2]][asked.body["seed"] % 3]
    choice = {"text": "?", "finish_reason": "stop" if ids == [2] else "length", "token_ids": ids}
    return {"choices": [{**choice, "prompt_token_ids": asked.body["prompt"]}]}


@pytest.mark.usefixtures("quick_runs")
def test_a_server_that_dies_between_two_turns_loses_nothing(tmp_path: Path) -> None:
    dies = [1000]

    def answer(asked: Asked) -> Any:
        return tiny(asked) if asked.number < dies[0] else Reply(hang_up=True)

    def chosen(name: str, server: Loopback) -> Any:
        options = f"url: '{server.url}', retries: 0, patience: 0.2, timeout: 5, concurrency: 1"
        sampling = f"sampling={{engine: server, K: 4, max_new_tokens: 1, shard: 1, {options}}}"
        return recipe(tmp_path / name, sampling, "evaluation=null", "iterations.count=1", text=TWO_TURNS)

    with Loopback(answer) as server:
        calm = train(chosen("calm", server))
        assert len(server.asked) == 24  # three prompts, four conversations, two answers
    with Loopback(answer) as server:
        dies[0] = 14  # in the second shard's second turn
        with pytest.raises(RunStopped, match=r"iteration 1, samples: .*run the same command again") as caught:
            train(chosen("hit", server))
        assert "\n" not in str(caught.value)
        before = committed(tmp_path / "hit/run")
        dies[0], tried = 10**6, len(server.asked)
        hit = train(chosen("hit", server))
        seeds = [a.body["seed"] for a in server.asked]
    # Two shards anew, the first turn of the second one too; a thread of the stopped run may still have asked again.
    assert len(set(seeds[tried:])) == 16
    assert not set(seeds[tried:]) & set(seeds[:8])
    assert all(committed(hit.run).get(name, data) == data for name, data in before.items())
    assert [n for n in differences(calm.run, hit.run) if n != "recipe.yaml" and not n.endswith("README.md")] == []
