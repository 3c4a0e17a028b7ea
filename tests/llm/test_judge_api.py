"""The API judge against servers that fail, stall, lie, ramble and die: abstained and counted, never made up."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from servers import Asked, Loopback, Reply, quick

from nashpo.llm.http import Waits
from nashpo.llm.judges.answers import choice, from_logprobs, matched, probability, under_key
from nashpo.llm.judges.api import APIJudge
from nashpo.llm.judges.api_config import APIJudgeConfig
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.interrupted import Interrupted
from nashpo.llm.judges.judge import Pair
from nashpo.llm.judges.matrix import judge_responses

PAIRS = [Pair(f"question {n}", f"first {n}", f"second {n}") for n in range(8)]


def judge(server: Loopback, waits: Waits | None = None, **settings: Any) -> APIJudge:
    config = APIJudgeConfig(**{"url": server.url, "model": "m", "retries": 1, "patience": 0.0, **settings})
    return APIJudge(config, waits or quick())


def said(text: Any, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, **choice}]}


def place(asked: Asked) -> int:
    """The number of the question."""
    found = re.search(r"question (\d)", asked.body["messages"][0]["content"])
    assert found is not None
    return int(found[1])


def probabilities(verdicts: Sequence[Any]) -> list[float | None]:
    return [verdict.probability for verdict in verdicts]


def test_a_question_holds_instruction_and_both_replies_in_order() -> None:
    with Loopback(lambda asked: said("A")) as server:
        verdicts = judge(server, system="Be fair.").compare([Pair("why {first}?", "since {second}", "no")])
        body = server.asked[0].body
    assert server.asked[0].path == "/v1/chat/completions"
    assert (verdicts[0].probability, verdicts[0].raw) == (1.0, ["A"])
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be fair."}
    places = [user["content"].index(text) for text in ("why {first}?", "since {second}", "no\n")]
    assert places == sorted(places)
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 64)
    assert "logprobs" not in body


def test_a_conversation_is_judged_by_its_only_message() -> None:
    with Loopback(lambda asked: said("tie")) as server:
        verdicts = judge(server).compare([Pair([{"role": "user", "content": "why?"}], "a", "b")])
        assert "[INSTRUCTION]\nwhy?\n[END" in server.asked[0].body["messages"][0]["content"]
    assert probabilities(verdicts) == [0.5]


def test_many_answers_keep_the_pairs_order() -> None:
    words = ["A", "B", "tie", "B", "A", "tie", "A", "B"]
    with Loopback(lambda asked: said(words[place(asked)])) as server:
        made = judge(server, concurrency=4)
        assert probabilities(made.compare(PAIRS)) == [1.0, 0.0, 0.5, 0.0, 1.0, 0.5, 1.0, 0.0]
        assert +made.counts == {"calls": 8}
        assert made.compare([]) == []


@pytest.mark.parametrize(
    "text", ["@", " @\n", "**@**", "[[@]]", "@.", '"@"', "Answer: @", "The answer is @", "Reply @"]
)
def test_words_for_a_side(text: str) -> None:
    assert [choice(text.replace("@", side)) for side in ("A", "B", "tie")] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B is better", 0.0),
        ("final verdict: **tie**!", 0.5),
        ("They differ in tone.\n\nB", 0.0),
        ("A\nIt is clearer.", 1.0),
        ("A\nB", None),
        ("A and B", None),
        ("A or B?", None),
        ("I think A is better because it is longer.", None),
        ("neither", None),
        ("Banana", None),
        ("", None),
        (" \n", None),
        ("C", None),
    ],
)
def test_prose_is_not_interpreted(text: str, read: float | None) -> None:
    assert choice(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("0.7", 0.7),
        ("1", 1.0),
        ("0", 0.0),
        (".25", 0.25),
        ("70%", 0.7),
        ("Probability: **0.7**.", 0.7),
        ("It is close.\n0.55", 0.55),
        ("1.7", None),
        ("170%", None),
        ("-0.3", None),
        ("+0.3", 0.3),
        ("1/2", None),
        ("0.5.3", None),
        ("0,7", None),
        ("nan", None),
        ("about 0.7", None),
        ("0.2\n0.3", None),
        ("", None),
    ],
)
def test_only_numbers_of_the_unit_interval_are_probabilities(text: str, read: float | None) -> None:
    assert probability(text) == read


def test_patterns_and_keys_find_the_answer() -> None:
    assert matched("I say [[A]]. Yes: [[A]]", r"\[\[(\w)\]\]") == "A"
    assert matched("[[A]] rather than [[B]]", r"\[\[(\w)\]\]") is None
    assert matched("winner=B", "B") == "B"
    assert matched("nothing", r"\[\[(\w)\]\]") is None
    fenced = 'Here:\n```json\n{"why": "x{y}", "winner": "A"}\n```'
    assert under_key(fenced, "winner") == "A"
    assert under_key('{"p": 0.25}', "p") == "0.25"
    for text in ("A", "{", '{"winner": true}', '{"winner": ["A"]}', '{"other": "A"}', "[" * 10_000, "{" * 9_999 + "}"):
        assert under_key(text, "winner") is None
    with Loopback(lambda asked: said('{"p": "P=0.25"}')) as server:
        made = judge(server, answer="probability", json_key="p", pattern="P=(.*)")
        assert probabilities(made.compare(PAIRS[:1])) == [0.25]


def listed(**logprobs: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": number} for token, number in logprobs.items()]
    return {"content": [{"token": next(iter(logprobs)), "top_logprobs": top}]}


def test_log_probabilities_of_the_letters() -> None:
    content = [
        {"token": "\n", "top_logprobs": []},
        {
            "token": " A",
            "top_logprobs": [
                {"token": " A", "logprob": math.log(0.5)},
                {"token": "A", "logprob": math.log(0.1)},
                {"token": "B", "logprob": math.log(0.2)},
                {"token": "The", "logprob": math.log(0.2)},
            ],
        },
    ]
    # Two sums of three rounded exponentials and one quotient: a few units of 1e-16.
    assert from_logprobs(content) == pytest.approx(0.75, rel=1e-15)
    bad = [listed(**numbers)["content"] for numbers in ({"A": math.nan}, {"A": 0.5}, {"C": -1.0})]
    for wrong in (None, [], [{}], "A", *bad):
        assert from_logprobs(wrong) is None
    with Loopback(lambda asked: said("A", logprobs=listed(A=-1.0, B=-1.0))) as server:
        made = judge(server, logprobs=True)
        assert probabilities(made.compare(PAIRS[:1])) == [0.5]
        assert server.asked[0].body["logprobs"] is True
        assert server.asked[0].body["top_logprobs"] == 20
    with Loopback(lambda asked: said("A")) as server:
        made = judge(server, logprobs=True, asks=2)
        assert probabilities(made.compare(PAIRS[:1])) == [None]  # the word is not taken instead
        with pytest.raises(ValueError, match="log-probabilities of A and B"):
            made.check()


def test_an_unreadable_answer_is_asked_again_with_a_reminder_and_then_abstained() -> None:
    with Loopback(lambda asked: said("Well, 1.7 I would say")) as server:
        made = judge(server, answer="probability", asks=3)
        verdict = made.compare(PAIRS[:1])[0]
        assert verdict.probability is None
        assert verdict.raw == {"answers": ["Well, 1.7 I would say"] * 3, "abstained": "unclear"}
        assert +made.counts == {"calls": 3, "unreadable": 3, "abstained": 1}
        roles = [message["role"] for message in server.asked[2].body["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert "one number from 0 to 1" in server.asked[2].body["messages"][-1]["content"]
    json.dumps(verdict.raw)


def test_a_reminder_may_help() -> None:
    with Loopback(lambda asked: said("hm" if len(asked.body["messages"]) == 1 else "B")) as server:
        made = judge(server)
        verdict = made.compare(PAIRS[:1])[0]
    assert (verdict.probability, verdict.raw) == (0.0, ["hm", "B"])
    assert +made.counts == {"calls": 2, "unreadable": 1}


def test_pairs_in_trouble_are_abstained_from_and_counted_and_the_rest_is_judged() -> None:
    """One pair each: a late answer, broken JSON, keys missing, a refusal by status, by the model, and prose."""
    troubles: dict[int, Any] = {
        1: Reply(stall=True),
        2: Reply(b"{"),
        3: {"choices": []},
        4: Reply({"error": {"message": "context too long"}}, 400),
        5: {"choices": [{"message": {"content": None, "refusal": "I cannot."}}]},
        6: said(None),
    }
    with Loopback(lambda asked: troubles.get(place(asked), said("A"))) as server:
        made = judge(server, timeout=0.5, patience=60.0)
        verdicts = made.compare(PAIRS)
    assert probabilities(verdicts) == [1.0, *[None] * 6, 1.0]
    assert made.counts["abstained"] == 6
    assert {name: made.counts[name] for name in ("late", "broken", "refused")} == {"late": 1, "broken": 3, "refused": 1}
    reasons = [verdict.raw["abstained"] for verdict in verdicts[1:7]]
    expected = ("late: .*no answer", "broken: .*no JSON", r"no choices\[0\]", "too long", "unclear", "content is None")
    for reason, words in zip(reasons, expected, strict=True):
        assert re.search(words, reason)
    assert verdicts[5].raw["answers"] == ["I cannot."] * 3


def test_a_judge_that_dies_and_comes_back_loses_nothing() -> None:
    with Loopback(lambda asked: said("A")) as server:
        slept = 0

        def sleep(seconds: float) -> None:
            nonlocal slept
            slept += 1
            if slept == 5:
                server.start()

        made = judge(server, Waits(sleep=sleep), concurrency=1, patience=60.0)
        assert probabilities(made.compare(PAIRS[:3])) == [1.0] * 3
        server.stop()
        assert probabilities(made.compare(PAIRS[3:])) == [1.0] * 5
        assert slept >= 5
        assert made.counts["abstained"] == 0


def test_a_judge_that_stays_away_keeps_what_was_answered() -> None:
    def dying(asked: Asked) -> Any:
        if asked.number == 3:
            threading.Thread(target=server.stop).start()
            return Reply(hang_up=True)
        return said("B")

    with Loopback(dying) as server:
        made = judge(server, concurrency=1)
        with pytest.raises(Interrupted, match=r"is down: .*start the server again and run the same command") as caught:
            made.compare(PAIRS)
    assert isinstance(caught.value, ValueError)
    assert {n: verdict.probability for n, verdict in caught.value.answered.items()} == {0: 0.0, 1: 0.0, 2: 0.0}
    assert made.counts["abstained"] == 0


def test_a_wrong_key_stops_everything_at_once() -> None:
    with Loopback(lambda asked: Reply({"error": "bad key"}, 401)) as server:
        made = judge(server, concurrency=1)
        with pytest.raises(Interrupted, match="status 401: bad key") as caught:
            made.compare(PAIRS)
        assert caught.value.answered == {}
        assert len(server.asked) == 1


def test_the_budget_ends_with_what_it_bought() -> None:
    with Loopback(lambda asked: said("A")) as server:
        made = judge(server, max_calls=5, concurrency=3)
        made.check()  # free
        with pytest.raises(Interrupted, match=r"max_calls = 5 .*5 answers.*3 pairs are open: run the same") as caught:
            made.compare(PAIRS)
        assert probabilities(list(caught.value.answered.values())) == [1.0] * 5
        assert len(server.asked) == 6
        with pytest.raises(Interrupted, match="8 pairs are open"):
            made.compare(PAIRS)
        assert len(server.asked) == 6


def test_starts_with_a_small_budget_come_to_an_end_and_pay_for_nothing_twice(tmp_path: Path) -> None:
    """Three sets of three responses are 18 questions in both orders: four starts with five calls each."""

    def longer(asked: Asked) -> Any:
        replies = re.findall(r"\[REPLY .\]\n(.*)\n", asked.body["messages"][0]["content"])
        return said("A" if len(replies[0]) > len(replies[1]) else "B")

    responses = [["x", "xx" + word, "xxxx" + word] for word in ("a", "b", "c")]
    spent = 0
    with Loopback(longer) as server:
        for _ in range(4):
            with Cache(tmp_path / "cache.jsonl") as cache:
                made = judge(server, max_calls=5, concurrency=2)
                try:
                    judged = judge_responses(made, ["1", "2", "3"], responses, cache=cache)
                except Interrupted:
                    spent += 1
        assert spent == 3
        assert len(server.asked) == 18
    assert [one.wins for one in judged] == [[[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.5]]] * 3


def test_reminders_are_paid_from_the_budget() -> None:
    with Loopback(lambda asked: said("hm")) as server:
        made = judge(server, max_calls=4, asks=3, concurrency=1)
        with pytest.raises(Interrupted) as caught:
            made.compare(PAIRS[:2])
        assert probabilities(list(caught.value.answered.values())) == [None]
        assert len(server.asked) == 4


def test_check_finds_out_before_long_work() -> None:
    with Loopback(lambda asked: said("A")) as server:
        judge(server).check()
    wrongs = {"'As a language": said("As a language model"), "status 400: unknown": Reply({"error": "unknown"}, 400)}
    for words, reply in wrongs.items():
        with Loopback(lambda asked, reply=reply: reply) as server, pytest.raises(ValueError, match=words):
            judge(server).check()
    with pytest.raises(ValueError, match="refused"):
        judge(server).check()


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    path.write_text('{"ask": "{instruction}"} 1: {first} 2: {second}')
    with Loopback(lambda asked: said("?")) as server:
        made = judge(server, template=str(path), asks=2)
        made.compare([Pair("q", "x", "y")])
        assert server.asked[0].body["messages"][0]["content"] == '{"ask": "q"} 1: x 2: y'
        assert "the form that was asked for" in server.asked[1].body["messages"][-1]["content"]
    path.write_text("{instruction} {first} {first} {second}")
    with pytest.raises(ValueError, match=r"has \{first\} 2 times"):
        judge(server, template=str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        judge(server, template=str(tmp_path / "none"))


def test_options_add_replace_and_leave_out_fields() -> None:
    with Loopback(lambda asked: said("A")) as server:
        options = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 1.0}
        judge(server, options=options).compare(PAIRS[:1])
        body = server.asked[0].body
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["temperature"]) == (9, 1.0)


def test_the_description_tells_what_answers_depend_on_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    path = tmp_path / "template.txt"
    path.write_text("{instruction} {first} {second}")
    with Loopback(lambda asked: said("A")) as server:
        made = judge(server, api_key_env="JUDGE_KEY", concurrency=3)
        about = json.dumps(made.describe(), sort_keys=True)
        made.compare(PAIRS[:1])
        assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
        assert json.dumps(made.describe(), sort_keys=True) == about
        assert "sk-secret" not in about + repr(made) + repr(vars(made))
        changes: list[dict[str, Any]] = [
            {"model": "n"},
            {"template": str(path)},
            {"system": "s"},
            {"answer": "probability"},
            {"temperature": 0.5},
            {"max_tokens": 2},
            {"options": {"seed": 1}},
            {"asks": 2},
        ]
        others = {json.dumps(judge(server, **change).describe(), sort_keys=True) for change in changes}
        assert len(others - {about}) == len(changes)
        same = [{"timeout": 1.0}, {"retries": 0}, {"patience": 1.0}, {"concurrency": 1}, {"max_calls": 2}]
        assert {json.dumps(judge(server, **change).describe(), sort_keys=True) for change in same} == {about}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost"}, "judge.url is 'localhost'"),
        ({"model": " "}, "judge.model"),
        ({"answer": "grade"}, "one of choice, probability"),
        ({"pattern": "("}, "no regular expression"),
        ({"logprobs": True, "answer": "probability"}, "leave out answer"),
        ({"options": {"messages": []}}, "without model, messages"),
        ({"api_key_env": "sk-secret"}, "name of an environment variable"),
        ({"temperature": -1}, "judge.temperature is -1"),
        ({"timeout": 0}, "judge.timeout is 0"),
        ({"patience": float("inf")}, "judge.patience is inf"),
        ({"max_calls": 0}, "judge.max_calls is 0"),
        ({"asks": True}, "judge.asks is True"),
        ({"concurrency": 0}, "judge.concurrency is 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        APIJudgeConfig(**{"url": "http://127.0.0.1:1/v1", "model": "m", **settings})
    assert "sk-secret" not in str(caught.value)
