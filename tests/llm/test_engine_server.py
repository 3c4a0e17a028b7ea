"""The engines on servers, against imitations of vLLM and of text-only servers that lie, and `transformers serve`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engine_world import Counted, Policy, context
from servers import Asked, Loopback, Reply, quick

from nashpo.llm.engines.config import ServerConfig, TextServerConfig
from nashpo.llm.engines.engine import Completion
from nashpo.llm.engines.remote import request_seed
from nashpo.llm.engines.server import NoTokenIds, ServerEngine
from nashpo.llm.engines.text_server import TextServerEngine
from nashpo.llm.http import Waits
from nashpo.llm.http_errors import ServerDown, ServerError
from nashpo.llm.prompts import Prompt

END = 1
PROMPTS = [Prompt.of("ab", (0, 72, 73)), Prompt.of("c", (0, 74))]
FOLDER = Path("/policies/one")


def engine(
    server: Loopback, tokenizer: Any, progress: Any = None, vocabulary: int = 259, **settings: Any
) -> ServerEngine:
    config = ServerConfig(**{"url": server.url, "K": 3, "max_new_tokens": 8, "retries": 2, **settings})
    made = ServerEngine(config, context(tokenizer, (END,), vocabulary, progress or Counted()))
    made.client.waits = quick()
    return made


def drawn(body: dict[str, Any]) -> list[int]:
    """Ids that an imitated server draws: a function of the seed, as long as the seed says."""
    return [100 + body["seed"] % 100 + place for place in range(body["seed"] % 5 + 1)]


def vllm(asked: Asked) -> dict[str, Any]:
    ids = [*drawn(asked.body), END]
    choice = {"index": 0, "text": "?", "finish_reason": "stop", "stop_reason": None, "token_ids": ids}
    return {"choices": [{**choice, "prompt_token_ids": asked.body["prompt"]}]}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: Callable[..., Any]) -> Any:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    return byte_tokenizer(template=template)


def test_ids_go_in_and_come_out(tokenizer: Any) -> None:
    counted = Counted()
    with Loopback(vllm) as server:
        found = engine(server, tokenizer, counted).sample(Policy(where=FOLDER), PROMPTS, 5)
        bodies = {(tuple(a.body["prompt"]), a.body["seed"]): a.body for a in server.asked}
    assert all(a.path == "/v1/completions" for a in server.asked)
    assert len(server.asked) == 6
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert len(row) == 3
        for k, completion in enumerate(row):
            body = bodies[prompt.ids, request_seed(5, prompt.key, k)]
            ids = (*drawn(body), END)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert completion == Completion(ids, True, text)
    assert sum(counted.calls) == 6


def test_all_that_shapes_the_distribution_is_sent(tokenizer: Any) -> None:
    """Servers fill in what is missing from the model's own generation settings."""
    with Loopback(vllm) as server:
        settings = {"K": 1, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "options": {"priority": 3}}
        engine(server, tokenizer, **settings).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
        engine(server, tokenizer, K=1, top_k=7).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
    first, second = (dict(asked.body) for asked in server.asked)
    assert first == {
        "model": str(FOLDER),
        "prompt": [0, 72, 73],
        "n": 1,
        "seed": request_seed(0, PROMPTS[0].key, 0),
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [END],
        "return_token_ids": True,
        "priority": 3,
    }
    assert second["top_k"] == 7


def test_seeds_are_small_and_belong_to_seed_prompt_and_response() -> None:
    seeds = {request_seed(s, key, k, d) for s in range(3) for key in "abc" for k in range(9) for d in range(3)}
    assert len(seeds) == 3 * 3 * 9 * 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_order_and_shard_do_not_change_a_response(tokenizer: Any) -> None:
    with Loopback(vllm) as server:
        both = engine(server, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5)
        turned = engine(server, tokenizer, concurrency=1).sample(Policy(where=FOLDER), PROMPTS[::-1], 5)
        other = engine(server, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 6)
    assert turned == both[::-1]
    assert other != both


def test_ids_among_log_probabilities_are_read(tokenizer: Any) -> None:
    def older(asked: Asked) -> dict[str, Any]:
        tokens = [f"token_id:{i}" for i in [*drawn(asked.body), END]]
        return {"choices": [{"finish_reason": "stop", "logprobs": {"tokens": tokens}}]}

    with Loopback(vllm) as server, Loopback(older) as old:
        expected = engine(server, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5)
        assert engine(old, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5) == expected


@pytest.mark.parametrize("field", ["stop_reason", "matched_stop"])
def test_an_end_token_told_beside_the_ids_is_put_behind_them(tokenizer: Any, field: str) -> None:
    reply = {"choices": [{"finish_reason": "stop", "token_ids": [100], "stop_reason": None, field: END}]}
    with Loopback(lambda asked: reply) as server:
        found = engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
    assert found[0][0].ids == (100, END)
    assert found[0][0].finished


def test_a_response_without_end_token_is_unfinished(tokenizer: Any) -> None:
    reply = {"choices": [{"finish_reason": "length", "token_ids": list(range(100, 108))}]}
    with Loopback(lambda asked: reply) as server:
        found = engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
    assert found[0][0].ids == tuple(range(100, 108))
    assert not found[0][0].finished


GOOD = {"finish_reason": "stop", "token_ids": [100, END]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": []}, "0 choices where 1"),
        ({"choices": [GOOD, GOOD]}, "2 choices where 1"),
        ({"choices": {"0": GOOD}}, "not of type list"),
        ({"choice": [GOOD]}, "no choices"),
        ({"choices": [{**GOOD, "token_ids": [259, END]}]}, "token id 259 is outside the tokenizer's vocabulary of 259"),
        ({"choices": [{**GOOD, "token_ids": [-1, END]}]}, "token id -1 is outside"),
        ({"choices": [{**GOOD, "token_ids": [True, END]}]}, "not a list of whole numbers"),
        ({"choices": [{**GOOD, "token_ids": "ab"}]}, "not a list of whole numbers"),
        ({"choices": [{**GOOD, "token_ids": []}]}, "no end token"),
        ({"choices": [{"finish_reason": "length", "token_ids": []}]}, "no tokens"),
        ({"choices": [{**GOOD, "token_ids": [100]}]}, r"by no end token of \[1\] \(stop_reason None\)"),
        ({"choices": [{**GOOD, "token_ids": [100], "stop_reason": "###"}]}, "stop_reason '###'"),
        ({"choices": [{**GOOD, "token_ids": [100], "stop_reason": True}]}, "by no end token"),
        ({"choices": [{**GOOD, "token_ids": [END, 100, END]}]}, "goes on behind its end token 1 at place 0"),
        ({"choices": [{**GOOD, "token_ids": [100] * 8 + [END]}]}, "9 tokens where max_new_tokens is 8"),
        ({"choices": [{**GOOD, "finish_reason": "abort"}]}, "finish_reason is 'abort'"),
        ({"choices": [{**GOOD, "finish_reason": None}]}, "finish_reason is None"),
        ({"choices": [{**GOOD, "prompt_token_ids": [0, 0, 72, 73]}]}, "a prompt of 4 tokens that are not the 3 sent"),
        ({"choices": [{"finish_reason": "stop", "logprobs": {"tokens": ["token_id:x"]}}]}, "whole numbers"),
    ],
)
def test_lies_are_asked_again_and_then_told_with_the_prompt(tokenizer: Any, answer: Any, reason: str) -> None:
    with Loopback(lambda asked: answer) as server:
        with pytest.raises(ServerError, match=f"response 0 to prompt {PROMPTS[0].key[:12]}: .*3 times.*{reason}"):
            engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
        assert len(server.asked) == 3


@pytest.mark.parametrize("choice", [{"text": "hello", "finish_reason": "stop"}, {**GOOD, "token_ids": None}])
def test_a_server_without_ids_is_sent_to_the_text_engine(tokenizer: Any, choice: Any) -> None:
    with Loopback(lambda asked: {"choices": [choice]}) as server:
        with pytest.raises(NoTokenIds, match="engine text_server"):
            engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
        assert len(server.asked) == 1


def test_trouble_on_the_way_changes_no_response(tokenizer: Any) -> None:
    """Every answer is wrong in another way at first; what comes in the end is what would have come at once."""
    troubles = [Reply(b"?"), Reply({}, 500), Reply(hang_up=True), Reply({}, 429, {"Retry-After": "0"}), {"choices": []}]
    met: set[tuple[int, ...]] = set()

    def troubled(asked: Asked) -> Any:
        key = (*asked.body["prompt"], asked.body["seed"])
        if key in met:
            return vllm(asked)
        met.add(key)
        return troubles[len(met) % len(troubles)]

    with Loopback(vllm) as calm, Loopback(troubled) as server:
        expected = engine(calm, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5)
        assert engine(server, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5) == expected
        assert len(server.asked) == 12


def test_a_server_that_dies_within_a_shard_and_comes_back(tokenizer: Any) -> None:
    with Loopback(vllm) as server:
        expected = engine(server, tokenizer).sample(Policy(where=FOLDER), PROMPTS, 5)
        made = engine(server, tokenizer, concurrency=1, patience=60.0)
        slept: list[float] = []

        def dying(asked: Asked) -> Any:
            if len(server.asked) == 9:  # the third of six responses
                server.answer = vllm
                threading.Thread(target=server.stop).start()
                return Reply(hang_up=True)
            return vllm(asked)

        def waiting(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 4:
                server.start()

        server.answer = dying
        made.client.waits = Waits(sleep=waiting)
        assert made.sample(Policy(where=FOLDER), PROMPTS, 5) == expected
        assert len(slept) >= 4


def test_a_dead_server_is_one_clear_line(tokenizer: Any) -> None:
    with Loopback(vllm) as server:
        pass
    made = engine(server, tokenizer, patience=0.0)
    for call in (made.check, lambda: made.sample(Policy(where=FOLDER), PROMPTS, 0)):
        with pytest.raises(ServerDown, match=r"refused; start the server again and run the same command"):
            call()


def test_check_asks_for_the_models(tokenizer: Any) -> None:
    with Loopback(vllm) as server:
        engine(server, tokenizer).check()
        with pytest.raises(ValueError, match="end token 1 is outside"):
            engine(server, tokenizer, vocabulary=1).check()
    with Loopback(vllm, models={"data": [{"name": "m"}]}) as server, pytest.raises(ValueError, match=r"data\[0\]\.id"):
        engine(server, tokenizer).check()


def test_the_description_has_no_secret_and_stays_the_same(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-secret")
    with Loopback(vllm) as server:
        made = engine(server, tokenizer, api_key_env="SERVER_KEY")
        before = json.dumps(made.describe())
        made.sample(Policy(where=FOLDER), PROMPTS, 0)
        assert json.dumps(made.describe()) == before
        assert made.about_server() == {"version": None, "models": {"m": "m"}}
        assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    assert "secret" not in before + repr(made)


def test_options_do_not_replace_what_the_recipe_says() -> None:
    for kind, name in ((ServerConfig, "top_k"), (ServerConfig, "seed"), (TextServerConfig, "generation_config")):
        with pytest.raises(ValueError, match=f"options.{name}"):
            kind(url="http://127.0.0.1:9/v1", options={name: 1})
    with pytest.raises(ValueError, match="dialect is 'french'; it must be one of transformers, openai"):
        TextServerConfig(url="http://127.0.0.1:9/v1", dialect="french")


# How the weights come to the server


def test_by_name_every_policy_is_asked_for_by_its_folder(tokenizer: Any, tmp_path: Path) -> None:
    with Loopback(vllm) as server:
        made = engine(server, tokenizer, K=1, model="up/{policy}")
        for name in ("one", "two"):
            made.sample(Policy(where=tmp_path / name), PROMPTS[:1], 0)
    assert [asked.body["model"] for asked in server.asked] == [f"up/{tmp_path}/one", f"up/{tmp_path}/two"]


def test_a_mixture_has_no_folder_to_serve(tokenizer: Any) -> None:
    with Loopback(vllm) as server, pytest.raises(ValueError, match="is a mixture"):
        engine(server, tokenizer).sample(Policy(), PROMPTS, 0)


def test_a_command_brings_the_weights_once_per_policy(tokenizer: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f'command: echo {{policy}} "$NASHPO_POLICY" "$NASHPO_POLICY_NAME" >> {log}'
    folders = [tmp_path / "it's one", tmp_path / "two"]
    with Loopback(vllm) as server:
        made = engine(server, tokenizer, K=1, model="m", weights=command)
        for folder in (folders[0], folders[0], folders[1], folders[0]):
            made.sample(Policy(where=folder), PROMPTS[:1], 0)
    assert {asked.body["model"] for asked in server.asked} == {"m"}
    assert log.read_text().splitlines() == [f"{f} {f} iterate" for f in (folders[0], folders[1], folders[0])]


def test_a_command_may_leave_a_server_behind_and_is_waited_for(tokenizer: Any, tmp_path: Path) -> None:
    """The new name appears in the list of models at the third look."""
    looks = 0
    with Loopback(vllm, models={"data": []}) as server:
        made = engine(server, tokenizer, K=1, weights="command: sleep 30 & echo $! > $NASHPO_POLICY.pid")

        def waiting(seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 2:
                server.models = {"data": [{"id": str(tmp_path / "one")}]}

        made.client.waits = Waits(sleep=waiting)
        made.sample(Policy(where=tmp_path / "one"), PROMPTS[:1], 0)
    assert looks == 2
    os.kill(int((tmp_path / "one.pid").read_text()), signal.SIGTERM)


def test_a_command_that_fails_or_serves_another_name_is_told(tokenizer: Any) -> None:
    with Loopback(vllm) as server:
        failing = engine(server, tokenizer, weights="command: echo out; echo no GPU >&2; exit 3")
        with pytest.raises(ValueError, match=r"ended with status 3 \(no GPU\)"):
            failing.sample(Policy(where=FOLDER), PROMPTS, 0)
        idle = engine(server, tokenizer, weights="command: true", patience=0.0)
        with pytest.raises(ValueError, match=f"lists the models m and not {FOLDER}"):
            idle.sample(Policy(where=FOLDER), PROMPTS, 0)
    assert server.asked == []


class LoRAServer(Loopback):
    """vLLM's endpoints for adapters, with their answers in plain text."""

    def __init__(self, root: Path) -> None:
        super().__init__(self._lora, {"data": [{"id": "base", "root": str(root)}]})

    def _lora(self, asked: Asked) -> Any:
        if asked.path == "/v1/completions":
            known = {entry["id"] for entry in self.models["data"]}
            return vllm(asked) if asked.body["model"] in known else Reply({"error": {"message": "no such model"}}, 404)
        if asked.path == "/v1/load_lora_adapter":
            self.models["data"].append({"id": asked.body["lora_name"], "root": asked.body["lora_path"]})
        return Reply(f"Success: {asked.path}".encode())


def adapter(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_adapters_are_loaded_by_content_and_unloaded(tokenizer: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    one, same, other = adapter(tmp_path / "1", b"1"), adapter(tmp_path / "2", b"1"), adapter(tmp_path / "3", b"3")
    with LoRAServer(base) as server:
        made = engine(server, tokenizer, K=1, weights="lora")
        for folder in (base, one, same, other, one):
            made.sample(Policy(where=folder), PROMPTS[:1], 0)
        models = [asked.body["model"] for asked in server.asked if asked.path == "/v1/completions"]
        loads = [asked.body for asked in server.asked if asked.path == "/v1/load_lora_adapter"]
        assert models[0] == "base"
        assert models[1] == models[2] == models[4] != models[3]
        assert [load["lora_path"] for load in loads] == [str(one), str(other)]
        made.close()
        gone = [asked.body["lora_name"] for asked in server.asked if asked.path == "/v1/unload_lora_adapter"]
        assert gone == [load["lora_name"] for load in loads]
        whole = tmp_path / "whole"
        whole.mkdir()
        with pytest.raises(ValueError, match=f"{whole} holds no adapter, and .* does not serve it"):
            made.sample(Policy(where=whole), PROMPTS[:1], 0)


def test_a_server_without_adapters_is_told(tokenizer: Any, tmp_path: Path) -> None:
    with Loopback(lambda asked: Reply({"detail": "Not Found"}, 404)) as server:
        made = engine(server, tokenizer, weights="lora")
        with pytest.raises(ValueError, match=r"status 404: Not Found; .*--enable-lora"):
            made.sample(Policy(where=adapter(tmp_path / "1", b"1")), PROMPTS, 0)


# Text only


def text_engine(server: Loopback, tokenizer: Any, **settings: Any) -> TextServerEngine:
    config = TextServerConfig(**{"url": server.url, "K": 2, "max_new_tokens": 8, "retries": 2, **settings})
    made = TextServerEngine(config, context(tokenizer, (END,), 259, Counted()))
    made.client.waits = quick()
    return made


def said(text: str | None, reason: str = "stop", **usage: int) -> dict[str, Any]:
    """An answer as text and as a message."""
    choice = {"text": text, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"choices": [choice], "usage": usage} if usage else {"choices": [choice]}


def test_text_is_tokenized_once_and_marked(tokenizer: Any) -> None:
    with Loopback(lambda asked: said("hé!", prompt_tokens=3)) as server:
        made = text_engine(server, tokenizer)
        found = made.sample(Policy(where=FOLDER), PROMPTS, 5)
    ids = tuple(tokenizer("hé!", add_special_tokens=False)["input_ids"])
    assert found == [(Completion((*ids, END), True, "hé!", True),) * 2] * 2
    assert made.kind == "text"
    assert +made.counts == {"other_prompt_length": 2}  # the second prompt has 2 tokens
    seeds = [asked.body["seed"] for asked in server.asked]
    assert seeds == [request_seed(5, prompt.key, k) for prompt in PROMPTS for k in range(2)]


def test_cut_off_text_has_no_end_token(tokenizer: Any) -> None:
    with Loopback(lambda asked: said("abc", "length")) as server:
        found = text_engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
    assert found[0][0] == Completion(tuple(tokenizer("abc", add_special_tokens=False)["input_ids"]), False, "abc", True)


def test_replacement_characters_are_counted(tokenizer: Any) -> None:
    with Loopback(lambda asked: said("a��")) as server:
        made = text_engine(server, tokenizer)
        made.sample(Policy(where=FOLDER), PROMPTS, 0)
    assert +made.counts == {"replacement_characters": 8}


def test_an_empty_text_that_ended_at_once_is_its_end_token(tokenizer: Any) -> None:
    with Loopback(lambda asked: said("", completion_tokens=1)) as server:
        made = text_engine(server, tokenizer, K=1)
        found = made.sample(Policy(where=FOLDER), PROMPTS[:1], 0)
    assert found[0][0] == Completion((END,), True, "", True)
    assert +made.counts == {"ended_at_once": 1}


@pytest.mark.parametrize("empty", [said("", "length"), said("", completion_tokens=3)])
def test_a_text_of_special_tokens_only_is_drawn_anew_and_never_made_up(tokenizer: Any, empty: Any) -> None:
    first = request_seed(0, PROMPTS[0].key, 0)
    with Loopback(lambda asked: empty if asked.body["seed"] == first else said("b")) as server:
        made = text_engine(server, tokenizer, K=1)
        assert made.sample(Policy(where=FOLDER), PROMPTS[:1], 0)[0][0].text == "b"
        assert [asked.body["seed"] for asked in server.asked] == [first, request_seed(0, PROMPTS[0].key, 0, 1)]
        assert +made.counts == {"redrawn": 1}
    with Loopback(lambda asked: empty) as server, pytest.raises(ServerError, match="gave no text in 3 draws"):
        text_engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said(None), "not of type str"),
        (said("a", "tool_calls"), "finish_reason is 'tool_calls'"),
        ({"choices": []}, "0 choices where 1"),
        ({"choices": said("a")["choices"] * 2}, "2 choices where 1"),
        ({"choices": [{"finish_reason": "stop"}]}, r"no choices\[0\]\.text"),
    ],
)
def test_missing_text_fails_the_prompt(tokenizer: Any, answer: Any, reason: str) -> None:
    with Loopback(lambda asked: answer) as server:
        with pytest.raises(ServerError, match=f"response 0 to prompt {PROMPTS[0].key[:12]}: .*3 times.*{reason}"):
            text_engine(server, tokenizer, K=1).sample(Policy(where=FOLDER), PROMPTS[:1], 0)
        assert len(server.asked) == 3


def test_conversations_are_sent_as_messages_and_ids_not_at_all(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with Loopback(lambda asked: said(" you")) as server:
        made = text_engine(server, tokenizer, K=1)
        found = made.sample(Policy(where=FOLDER), [Prompt.of(messages, (0, 5))], 0)
        assert (server.asked[0].path, server.asked[0].body["messages"]) == ("/v1/chat/completions", messages)
        assert found[0][0].ids == (*tokenizer(" you", add_special_tokens=False)["input_ids"], END)
        with pytest.raises(ValueError, match="is token ids: text_server takes text"):
            made.sample(Policy(where=FOLDER), [Prompt.of([0, 5], (0, 5))], 0)


def test_dialects_send_what_their_servers_take(tokenizer: Any) -> None:
    with Loopback(lambda asked: said("a")) as server:
        for settings in ({}, {"dialect": "openai"}, {"dialect": "openai", "top_k": 9}):
            text_engine(server, tokenizer, K=1, temperature=0.5, **settings).sample(
                Policy(where=FOLDER), PROMPTS[:1], 0
            )
    bodies = [dict(asked.body) for asked in server.asked]
    generation = json.loads(bodies[0]["generation_config"])
    wanted = {"do_sample": True, "temperature": 0.5, "top_k": 0, "max_new_tokens": 8, "eos_token_id": [END]}
    assert wanted.items() <= generation.items()
    shared = {"model", "prompt", "seed", "max_tokens"}
    assert set(bodies[0]) == shared | {"generation_config"}
    assert set(bodies[1]) == shared | {"temperature", "top_p"}
    assert set(bodies[2]) == shared | {"temperature", "top_p", "top_k"}


def test_text_without_end_tokens_cannot_be_read(tokenizer: Any) -> None:
    made = TextServerEngine(TextServerConfig(url="http://127.0.0.1:9/v1"), context(tokenizer, ()))
    with pytest.raises(ValueError, match="needs an end token"):
        made.check()


# The real thing

SERVING = ("fastapi", "uvicorn", "openai", "pydantic")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Any], tokenizer: Any
) -> Iterator[tuple[str, Path]]:
    """`transformers serve` on a free port, and the folder of a tiny model; the server is stopped at the end."""
    if missing := [name for name in SERVING if find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("served")
    model = tiny_llama()
    # Wider logits: texts differ, and some responses end before they are cut off.
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1", folder / "policy"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder / "policy")


def test_transformers_serve(served: tuple[str, Path], tokenizer: Any) -> None:
    """Its start is waited for as a dead server is; samples repeat, end, and are not all alike."""
    url, folder = served
    config = TextServerConfig(url=url, K=4, max_new_tokens=6, retries=0, patience=120.0)
    made = TextServerEngine(config, context(tokenizer, (END,), 259, Counted()))
    chat = [{"role": "user", "content": "c"}]
    header = tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    prompts = [Prompt.of("ab", tokenizer("ab")["input_ids"]), Prompt.of(chat, header)]
    found = made.sample(Policy(where=folder), prompts, 3)
    made.check()
    assert made.sample(Policy(where=folder), prompts, 3) == found
    assert made.sample(Policy(where=folder), prompts[::-1], 3) == found[::-1]
    assert made.sample(Policy(where=folder), prompts, 4) != found
    rows = [completion for row in found for completion in row]
    assert [len(row) for row in found] == [4, 4]
    assert all(c.retokenized and c.ids and tokenizer.decode(c.ids, skip_special_tokens=True) == c.text for c in rows)
    assert len({c.text for c in rows}) > 1
    assert not made.counts["other_prompt_length"]  # one begin token before text, none where the template has none
    with pytest.raises(ServerError, match="status 422: Unexpected fields"):
        TextServerEngine(
            TextServerConfig(url=url, K=1, dialect="openai", top_k=3), context(tokenizer, (END,), 259, Counted())
        ).sample(Policy(where=folder), prompts[:1], 0)
