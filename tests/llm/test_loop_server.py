"""A run whose responses come from a server, which dies while it samples: one line, and a rerun goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from killing import committed, differences
from servers import Asked, Loopback, Reply
from test_loop_rules import recipe

from nashpo.llm.loop.machine import train
from nashpo.llm.loop.messages import RunStopped

END = 2  # the tiny model of two words


def draw(asked: Asked) -> dict[str, Any]:
    """As vLLM answers: up to two words, a function of the request's seed."""
    seed = asked.body["seed"]
    ids = [[END], [0, END], [1, END], [0, 0], [0, 1], [1, 0], [1, 1]][seed % 7]
    reason = "stop" if ids[-1] == END else "length"
    choice = {"index": 0, "text": "?", "finish_reason": reason, "stop_reason": None, "token_ids": ids}
    return {"choices": [{**choice, "prompt_token_ids": asked.body["prompt"]}]}


def test_a_server_that_dies_while_sampling_loses_nothing(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    dies = [1000]

    def answer(asked: Asked) -> Any:
        return draw(asked) if asked.number < dies[0] else Reply(hang_up=True)

    def chosen(name: str, server: Loopback) -> Any:
        options = f"url: '{server.url}', retries: 0, patience: 0.2, timeout: 5, concurrency: 1"
        engine = f"sampling={{engine: server, K: 4, max_new_tokens: 2, shard: 1, {options}}}"
        return recipe(tmp_path / name, engine, "evaluation=null")

    with Loopback(answer) as server:
        calm = train(chosen("calm", server))
        count = len(server.asked)
    assert count == 24  # two iterations, three prompts, four responses
    with Loopback(answer) as server:
        dies[0] = 18  # in the second iteration's second shard
        with pytest.raises(RunStopped, match=r"iteration 2, samples: .*run the same command again") as caught:
            train(chosen("hit", server))
        assert "\n" not in str(caught.value)
        before = committed(tmp_path / "hit/run")
        assert any(name.startswith("iterations/001/model") for name in before)
        dies[0] = 10**6
        tried = len(server.asked)
        hit = train(chosen("hit", server))
        # The shard that was lost and the one after it; a thread of the stopped run may still have asked again.
        asked = [(tuple(a.body["prompt"]), a.body["seed"]) for a in server.asked]
        assert len(set(asked[tried:])) == 8
        assert not set(asked[tried:]) & set(asked[:16])
    after = committed(hit.run)
    assert all(after.get(name, data) == data for name, data in before.items())
    # Only the address of the server differs between the runs.
    assert [n for n in differences(calm.run, hit.run) if n != "recipe.yaml" and not n.endswith("README.md")] == []
