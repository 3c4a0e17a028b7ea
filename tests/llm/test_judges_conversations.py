"""Judges of conversations: each is given all of both, strings are judged as ever, and nothing is cut unseen."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.llm.evaluation import PolicySamples, summary
from nashpo.llm.judges.api import APIJudge
from nashpo.llm.judges.api_config import APIJudgeConfig
from nashpo.llm.judges.cache import Cache, Keys
from nashpo.llm.judges.config import FunctionConfig, GPMConfig, PairLMConfig, PairRMConfig, RewardModelConfig
from nashpo.llm.judges.judge import Pair, Verdict, canonical
from nashpo.llm.judges.matrix import Judged, judge_responses
from nashpo.llm.judges.pairrm import FIRST, MARKERS, SECOND, SOURCE
from nashpo.llm.judges.pairrm_turns import INSTRUCTION
from nashpo.llm.judges.table import TableJudge
from nashpo.llm.judges.train_reward import RewardTraining, train_reward_model
from nashpo.llm.loop.conversing import ready_judge
from nashpo.llm.response_games import cycles, longer_wins, unanswered
from nashpo.llm.transcript import response_text, transcript

Turns = list[dict[str, str]]
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASK = [{"role": "user", "content": "why?"}]


def said(*texts: str, other: str = "user") -> Turns:
    """Turns of the assistant and another side, in turn."""
    return [{"role": other if n % 2 else "assistant", "content": text} for n, text in enumerate(texts)]


FIRST_ONE, SECOND_ONE = said("so", "and then?", "thus"), said("no", "and then?", "yes")
CHANGED = [
    said("SO", "and then?", "thus"),
    said("so", "AND then?", "thus"),
    said("so", "and then?", "THUS"),
]
"""The first conversation with another first answer, other side's turn and last answer."""
PAIR = Pair(ASK, FIRST_ONE, SECOND_ONE)


def changes() -> list[Pair]:
    """The pair, with one turn of one side changed, and with another prompt."""
    firsts = [Pair(ASK, turns, SECOND_ONE) for turns in CHANGED]
    seconds = [Pair(ASK, SECOND_ONE, turns) for turns in CHANGED]
    return [*firsts, *seconds, Pair([{"role": "user", "content": "WHY?"}], FIRST_ONE, SECOND_ONE)]


class Answers:
    """A judge that answers by a function of the two responses, and keeps what it was asked."""

    name = "answers"

    def __init__(self, answer: Callable[[Any, Any], Any], antisymmetric: bool = False) -> None:
        self.answer, self.antisymmetric = answer, antisymmetric
        self.asked: list[Pair] = []

    def describe(self) -> dict[str, Any]:
        return {"judge": "answers"}

    def check(self) -> None: ...

    def close(self) -> None: ...

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.asked += pairs
        return [Verdict(self.answer(pair.first, pair.second)) for pair in pairs]


# The matrix and the cache.


def test_keys_of_texts_are_what_they_were() -> None:
    """Hashes of the versions that knew no conversations: no answer of theirs is asked for again."""
    table = TableJudge(["a", "é\n\nuser: b"], [[0.5, 0.8], [0.2, 0.5]])
    api = APIJudge(APIJudgeConfig(url="http://localhost:1/v1", model="m"))
    found = [
        Keys(table)(Pair("why?", "a", "é\n\nuser: b")),
        Keys(table)(Pair(ASK, "é\n\nuser: b", "a")),
        Keys(api)(Pair("why?", "a", "b")),
    ]
    assert [key.hex() for key in found] == [
        "741b6771e71bf99a0bcad3c6fb6f7f33",
        "c19c5e3389aacf71c0820864db42daa1",
        "c0b4b4d3184606ed9fa1e9ef058d0bcd",
    ]
    keys = Keys(table)
    others = [keys(pair) for pair in (PAIR, *changes(), Pair(ASK, transcript(FIRST_ONE), transcript(SECOND_ONE)))]
    assert len(set(others)) == len(others)
    assert keys(Pair(ASK, tuple(FIRST_ONE), [{"content": t["content"], "role": t["role"]} for t in SECOND_ONE])) == (
        keys(PAIR)
    )


def test_conversations_are_symmetrized_and_asked_once(tmp_path: Path) -> None:
    """Four turn lists, two of them equal, and a text that is the JSON of one: 4 different responses, 12 questions."""
    rng = np.random.default_rng(0)
    judge = Answers(lambda first, second: float(rng.uniform()))
    twin = [{"content": turn["content"], "role": turn["role"]} for turn in FIRST_ONE]
    row = [FIRST_ONE, SECOND_ONE, twin, CHANGED[1], canonical(FIRST_ONE)]
    with Cache(tmp_path / "cache.jsonl") as cache:
        first, again = judge_responses(judge, [ASK, ASK], [row, row], cache=cache)
        assert len(judge.asked) == 12
        assert judge.asked[0] == PAIR
        assert all(pair.first != pair.second for pair in judge.asked)
        P: Any = np.array(first.wins, dtype=float)
        np.testing.assert_array_equal(P + P.T, 1.0)
        assert P[0, 2] == 0.5
        np.testing.assert_array_equal(P[0], P[2])
        assert first == again
        assert judge_responses(judge, [ASK], [row], cache=cache) == [first]
        (against,) = judge_responses(judge, [ASK], [row[:2]], others=[row[1:]], cache=cache)
        np.testing.assert_array_equal(np.array(against.wins, dtype=float), P[:2, 1:])
        assert len(judge.asked) == 12
    assert Judged.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_an_antisymmetric_judge_is_asked_in_one_order() -> None:
    """Whichever stands first in the row, and texts in the order of texts."""
    for row in ([FIRST_ONE, SECOND_ONE, "b", "a"], ["a", "b", SECOND_ONE, FIRST_ONE]):
        judge = Answers(lambda first, second: 0.8, antisymmetric=True)
        (judged,) = judge_responses(judge, [ASK], [row])
        P: Any = np.array(judged.wins, dtype=float)
        np.testing.assert_array_equal(P + P.T, 1.0)
        asked = {(canonical(p.first), canonical(p.second)) for p in judge.asked}
        assert ('"a"', '"b"') in asked
        assert (canonical(SECOND_ONE), canonical(FIRST_ONE)) in asked  # "no" before "so"
        assert len(judge.asked) == 6


def test_conversations_with_one_transcript_are_different() -> None:
    five, three = said("a", "b", "c", "d", "e"), said("a\n\nuser: b\n\nassistant: c", "d", "e")
    assert transcript(five) == transcript(three)
    judge = Answers(lambda first, second: 0.75)
    (judged,) = judge_responses(judge, [ASK], [[five, three]])
    assert [(p.first, p.second) for p in judge.asked] == [(five, three), (three, five)]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (7, "response 1 to prompt 0 is '7'; it must be a text, or a list of messages with role and content in text"),
        ([], r"response 1 to prompt 0 is '\[\]'; it must be a text"),
        ([5, 6], r"response 1 to prompt 0 is '\[5,6\]'; it must be a text"),
        ([{"role": "assistant", "content": None}], "it must be a text, or a list of messages"),
        (said("a", "b"), "a conversation, ends with a message of role 'user'; the turns behind a prompt must end with"),
        (said("a", "b", "c")[1:], "a conversation, begins with a message of role 'user'"),
    ],
)
def test_what_is_no_response_is_one_line(bad: Any, told: str) -> None:
    judge = Answers(lambda first, second: 0.5)
    with pytest.raises(ValueError, match=told) as raised:
        judge_responses(judge, [ASK], [["a", bad]])
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="^other response 0 to prompt 0"):
        judge_responses(judge, [ASK], [["a"]], others=[[bad]])
    assert not judge.asked


def test_a_conversation_of_one_answer_is_its_text() -> None:
    judge = Answers(lambda first, second: 0.7)
    (judged,) = judge_responses(judge, [ASK], [["a", said("a"), said("b")]])
    assert judged.wins[0][1] == 0.5
    assert [(p.first, p.second) for p in judge.asked] == [("a", "b"), ("b", "a")]


def test_a_wrong_answer_is_told_with_the_transcripts() -> None:
    judge = Answers(lambda first, second: 2.0)
    with pytest.raises(
        ValueError, match=re.escape("for P('so\\n\\nuser: and then?\\n\\nassistant: thus' beats 'no")
    ) as e:
        judge_responses(judge, [ASK], [[FIRST_ONE, SECOND_ONE]])
    assert "\n" not in str(e.value)


# What each judge is given.


def test_a_table_knows_transcripts() -> None:
    """P of rock, paper, scissors on three conversations, each of whose turns tells them apart."""
    P = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
    judge = TableJudge([transcript(FIRST_ONE), transcript(CHANGED[1]), "a"], P)
    (judged,) = judge_responses(judge, [ASK], [[FIRST_ONE, CHANGED[1], "a"]])
    assert judged.wins == P
    with pytest.raises(ValueError, match=r"the table has no response 'so\\n\\nuser: and then\?\\n\\nassistant: THUS'"):
        judge.index(ASK, CHANGED[2])


def test_the_api_judge_shows_transcripts_and_says_so(tmp_path: Path) -> None:
    judge = APIJudge(APIJudgeConfig(url="http://localhost:1/v1", model="m"))

    def question(pair: Pair) -> str:
        (message,) = judge._messages(pair)
        return message["content"]

    shown = question(PAIR)
    assert "[INSTRUCTION]\nwhy?\n[END" in shown
    assert "[REPLY A]\nso\n\nuser: and then?\n\nassistant: thus\n[END OF REPLY A]" in shown
    assert "[REPLY B]\nno\n\nuser: and then?\n\nassistant: yes\n[END OF REPLY B]" in shown
    assert "whole conversation" in shown
    assert "whole conversation" in question(Pair(ASK, "so", SECOND_ONE))
    assert "conversation" not in question(Pair(ASK, "so", "no"))
    assert shown not in [question(pair) for pair in changes()]
    own = tmp_path / "question.txt"
    own.write_text("{instruction}|{first}|{second}")
    judge = APIJudge(APIJudgeConfig(url="http://localhost:1/v1", model="m", template=str(own)))
    assert question(PAIR) == f"why?|{transcript(FIRST_ONE)}|{transcript(SECOND_ONE)}"


SOURCE_CODE = """
given = []

def pairs(prompts, firsts, seconds):
    given.append((firsts, seconds))
    if isinstance(firsts[0], list):
        firsts[0][0]["content"] = "changed here"
    return [0.5 for _ in prompts]

def reward(prompts, completions):
    given.append(completions)
    return [0.0 for _ in prompts]

class Ranks:
    def judge(self, prompts, completions, shuffle_order=True, return_scores=False):
        given.append(completions)
        return [0 for _ in prompts]
"""


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A maker of what a function of a form is given on a pair."""
    (tmp_path / "talk_judges.py").write_text(SOURCE_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def given(name: str, form: str, pair: Pair, conversations: bool = False) -> Any:
        judge: Any = FunctionConfig(function=f"talk_judges:{name}", form=form).build("cpu")
        judge.conversations = conversations
        judge.compare([pair])
        import talk_judges

        return talk_judges.given[-1]

    yield given
    sys.modules.pop("talk_judges", None)


def test_functions_get_messages_for_messages_and_texts_for_texts(function: Callable[..., Any]) -> None:
    first, second = said("so", "and then?", "thus"), said("no", "and then?", "yes")
    texts = [transcript(first), transcript(second)]
    chat, plain = Pair(ASK, first, second), Pair("why?", first, second)
    firsts, seconds = function("pairs", "pairs", chat)
    assert (firsts[0][1:], seconds) == (first[1:], [second])
    assert first[0]["content"] == "so"  # the function changed its own copy
    assert function("pairs", "pairs", plain) == ([texts[0]], [texts[1]])
    firsts, seconds = function("pairs", "pairs", Pair(ASK, "so", second))
    assert ([turn["role"] for turn in firsts[0]], seconds) == (["assistant"], [second])
    assert function("pairs", "pairs", Pair("why?", "so", second)) == (["so"], [texts[1]])
    assert function("pairs", "pairs", Pair(ASK, "so", "no")) == (["so"], ["no"])  # answers of one turn, as ever
    firsts, seconds = function("pairs", "pairs", Pair(ASK, "so", "no"), conversations=True)
    assert seconds == [said("no")]  # all of a call's conversations may have ended after one answer
    assert function("reward", "reward", chat) == [first, second]
    assert function("reward", "reward", plain) == texts
    assert function("reward", "reward", Pair(ASK, "so", second)) == [said("so"), second]
    for form in ("ranks", "probabilities"):
        assert function("Ranks", form, chat) == function("Ranks", form, plain) == [texts]


# Judges with weights.

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, byte_tokenizer: Callable[..., Any]) -> Save:
    """A maker of folders with a model and a byte tokenizer with a chat template."""

    def make(model: Any, template: str = CHAT, name: str = "model") -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder)
        byte_tokenizer(template=template).save_pretrained(folder)
        return folder

    return make


def classifier() -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {"vocab_size": 259, "max_position_embeddings": 512, "num_labels": 1, "initializer_range": 0.2}
        ends = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
        return LlamaForSequenceClassification(LlamaConfig(**shape, **config, **ends))


def reward_judge(save: Save, llama: Callable[..., Any], **settings: Any) -> Any:
    return RewardModelConfig(path=str(save(classifier())), **settings).build("cpu")


def gpm_judge(save: Save, llama: Callable[..., Any], **settings: Any) -> Any:
    from safetensors.torch import load_file, save_file

    folder = save(llama(initializer_range=0.2))
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors["value_head.weight"] = torch.randn(4, 32, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return GPMConfig(path=str(folder), **settings).build("cpu")


def pair_lm_judge(save: Save, llama: Callable[..., Any], **settings: Any) -> Any:
    return PairLMConfig(path=str(save(llama(initializer_range=0.2))), **settings).build("cpu")


@pytest.mark.parametrize("make", [reward_judge, gpm_judge, pair_lm_judge])
def test_every_turn_moves_a_models_answer(make: Any, save: Save, tiny_llama: Callable[..., Any]) -> None:
    """Each verdict, read beside the others in a batch, is its own: no two changes give one answer."""
    judge = make(save, tiny_llama)
    verdicts = judge.compare([PAIR, *changes()])
    raw = [tuple(np.ravel(list(verdict.raw.values())).round(6)) for verdict in verdicts]
    assert len(set(raw)) == len(raw)
    (judged,) = judge_responses(judge, [ASK], [[FIRST_ONE, SECOND_ONE, "so"]])
    P: Any = np.array(judged.wins, dtype=float)
    np.testing.assert_array_equal(P + P.T, 1.0)
    if judge.antisymmetric:
        # Rounding of float32 logits of order 1, padded beside other rows; GPM divides by 0.1.
        assert P[0, 1] == pytest.approx(verdicts[0].probability, abs=2e-5)


def test_what_models_with_a_chat_template_read(save: Save, tiny_llama: Callable[..., Any]) -> None:
    """The prompt's messages and all turns are one conversation; a text is the user's message before it."""
    judge = reward_judge(save, tiny_llama)
    judge.ready()
    whole = "[user]why?</s>[assistant]so</s>[user]and then?</s>[assistant]thus</s>"
    assert judge.tokenizer.decode(judge.encode(ASK, FIRST_ONE)) == "<s>" + whole
    assert judge.encode("why?", FIRST_ONE) == judge.encode(ASK, FIRST_ONE)
    judge.template = "Q: {prompt} A: {response}"
    assert judge.tokenizer.decode(judge.encode(ASK, FIRST_ONE)) == f"<s>Q: why? A: {transcript(FIRST_ONE)}"


def test_gpm_and_pair_lm_read_whole_conversations(save: Save, tiny_llama: Callable[..., Any]) -> None:
    judge = gpm_judge(save, tiny_llama)
    judge.ready()
    whole = "[user]why?</s>[assistant]so</s>[user]and then?</s>[assistant]thus</s>"
    assert judge.tokenizer.decode(judge.encode(ASK, FIRST_ONE)) == "<s><s>" + whole
    judge = pair_lm_judge(save, tiny_llama)
    judge.ready()
    text = judge.tokenizer.decode(judge.encode(PAIR))
    assert f"[RESPONSE A] {transcript(FIRST_ONE)} [RESPONSE B] {transcript(SECOND_ONE)} \n" in text
    assert "<turn> user\n why?" in text


@pytest.mark.parametrize("make", [reward_judge, gpm_judge, pair_lm_judge])
def test_what_is_too_long_is_abstained_from(make: Any, save: Save, tiny_llama: Callable[..., Any]) -> None:
    """A last answer that does not fit is not cut off: the pair has no win rate, which is what is counted."""
    judge = make(save, tiny_llama, max_length=250)
    long = said("so", "and then?", "thus " * 50)
    (judged,) = judge_responses(judge, [ASK], [[FIRST_ONE, SECOND_ONE, long]])
    assert judged.wins[0][1] is not None
    assert [judged.wins[2][j] for j in (0, 1)] == [None, None]
    assert unanswered(judged.wins, [transcript(t) for t in (FIRST_ONE, SECOND_ONE, long)]) == (2, 3)


LAST_ONLY = "{{ bos_token }}{% for m in messages[-2:] %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
NO_TOOLS = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'].split('</think>')[-1] }}</s>{% endfor %}"
)


def test_a_template_that_leaves_out_a_turn_is_refused(save: Save, tiny_llama: Callable[..., Any]) -> None:
    judge = RewardModelConfig(path=str(save(classifier(), LAST_ONLY))).build("cpu")
    with pytest.raises(ValueError, match=r"leaves out turn 2 \(assistant\) of a conversation of 4") as raised:
        judge.compare([PAIR])
    assert "\n" not in str(raised.value)
    assert judge.compare([Pair(ASK, "so", "no")])[0].probability is not None
    judge.check()  # as a run does before it samples, and with conversations:
    with pytest.raises(ValueError, match=r"leaves out turn 2 \(assistant\) of a conversation of 4"):
        judge.check_conversation()
    ready_judge(judge, False)
    with pytest.raises(ValueError, match=r"leaves out turn 2 \(assistant\) of a conversation of 4"):
        ready_judge(judge, True)  # as a run and an arena do
    judge = RewardModelConfig(path=str(save(classifier(), NO_TOOLS, "other"))).build("cpu")
    with pytest.raises(ValueError, match="refuses a conversation of user, assistant, tool, assistant .*no tools here"):
        judge.compare([Pair(ASK, said("so", "42", "thus", other="tool"), SECOND_ONE)])
    thinking = said("<think>hm</think>so", "and then?", "thus")
    assert judge.compare([Pair(ASK, thinking, SECOND_ONE)])[0].probability is not None


def test_a_reward_model_learns_from_conversations(save: Save, tmp_path: Path) -> None:
    """With learning rate 0 the loss is −log σ(r_c − r_d) at the rewards that the judge reads."""
    from transformers import AutoTokenizer

    start = save(classifier())
    tokenizer = AutoTokenizer.from_pretrained(start)
    pair = {"prompt": ASK, "chosen": FIRST_ONE, "rejected": SECOND_ONE}
    report = train_reward_model(start, tokenizer, [pair], tmp_path / "reward", RewardTraining(learning_rate=0.0))
    (verdict,) = RewardModelConfig(path=str(start)).build("cpu").compare([PAIR])
    # Rounding of float32 rewards of order 1.
    assert report.losses == [pytest.approx(-np.log(float(verdict.probability or 0)), abs=5e-6)]
    with pytest.raises(ValueError, match="pair 0: rejected, a conversation, ends with a message of role 'user'"):
        train_reward_model(start, tokenizer, [{**pair, "rejected": said("a", "b")}], tmp_path / "none")


# PairRM.


@pytest.fixture
def pairrm(byte_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of PairRM judges that read bytes and score by the lengths of their inputs: no weights."""

    def make(**settings: Any) -> Any:
        judge: Any = PairRMConfig(path="x", **settings).build("cpu")
        judge.tokenizer = byte_tokenizer()
        judge.tokenizer.sep_token = "</s>"
        judge.tokenizer.add_tokens(list(MARKERS))
        judge.ready = lambda: None
        judge.read = lambda rows: torch.tensor([[float(len(row) % 7), 0.0] for row in rows])
        return judge

    return make


def read(judge: Any, pair: Pair) -> list[str]:
    """Source and candidates, as text."""
    text = judge.tokenizer.decode(judge.encode(pair))
    return re.split("|".join(re.escape(f"<s>{marker}") for marker in (SOURCE, FIRST, SECOND)), text)[1:]


def test_pairrm_reads_conversations_as_published(pairrm: Callable[..., Any]) -> None:
    judge = pairrm()
    assert read(judge, PAIR) == [
        INSTRUCTION + "USER: why?\nAssistant: <Response 1>\nUSER: and then?\nAssistant: <Response 2>",
        "<Response 1>: so\n<Response 2>: thus",
        "<Response 1>: no\n<Response 2>: yes",
    ]
    history = [*ASK, *said("since", "go on")]
    source, first, _ = read(judge, Pair(history, FIRST_ONE, SECOND_ONE))
    assert source.endswith("USER: go on\nAssistant: <Response 2>\nUSER: and then?\nAssistant: <Response 3>")
    assert first == "<Response 1>: since\n<Response 2>: so\n<Response 3>: thus"
    own = pairrm(template="({prompt})")
    assert read(own, PAIR)[0] == f"({read(judge, PAIR)[0]})"


@pytest.mark.parametrize(
    "pair",
    [
        Pair(ASK, FIRST_ONE, CHANGED[1]),
        Pair(ASK, FIRST_ONE, "no"),
        Pair(ASK, "no", FIRST_ONE),
        Pair(ASK, FIRST_ONE, said("no", "and then?", "so", "and then?", "yes")),
        Pair(ASK, said("so", "42", "thus", other="tool"), said("no", "42", "yes", other="tool")),
        Pair([{"role": "system", "content": "be kind"}, *ASK], FIRST_ONE, SECOND_ONE),
    ],
)
def test_pairrm_reads_transcripts_where_there_is_no_published_form(pairrm: Callable[..., Any], pair: Pair) -> None:
    assert read(pairrm(), pair) == ["why?", response_text(pair.first), response_text(pair.second)]


def test_pairrm_sees_every_turn_and_cuts_only_texts(pairrm: Callable[..., Any]) -> None:
    judge = pairrm()
    shown = [judge.encode(pair) for pair in (PAIR, *changes())]
    assert all(shown.count(ids) == 1 for ids in shown)
    tight = pairrm(source_tokens=120, candidate_tokens=80)
    long = said("so", "and then?", "thus " * 20)
    kept, cut, text = tight.compare([PAIR, Pair(ASK, long, SECOND_ONE), Pair(ASK, "so " * 90, "no")])
    assert kept.probability is not None
    assert text.probability is not None
    tokens = len(judge.encode(Pair(ASK, long, SECOND_ONE)))
    assert (cut.probability, cut.raw) == (None, {"abstained": f"{tokens} tokens, more than 280"})
    assert tight.compare([Pair(ASK, long, SECOND_ONE)]) == [cut]
    (judged,) = judge_responses(tight, [ASK], [[FIRST_ONE, SECOND_ONE, long]])
    assert [p is None for p in judged.wins[2]] == [True, True, False]


# What is said of judged conversations.


def test_statistics_of_conversations_count_the_policys_tokens() -> None:
    """The middle one is longer in the policy's tokens, whatever the transcripts' lengths: it wins 0.9 and loses 0.2."""
    wins = [[0.5, 0.1, 0.3], [0.9, 0.5, 0.2], [0.7, 0.8, 0.5]]
    texts = [transcript(said("a", "b" * 90, "c")), transcript(said("a", "b", "ccc")), transcript(said("a", "b", "d"))]
    lengths = [2, 4, 2]
    assert longer_wins(wins, lengths, texts) == pytest.approx((0.9 + 0.2) / 2, abs=1e-15)
    assert cycles(wins, texts) == (0, 1)
    samples = PolicySamples([texts], [lengths], [[True] * 3])
    found = summary(1, [ASK], samples, {"reference": samples}, {"reference": [Judged(wins)]}, None, {}, None, 0)
    assert found["lengths"]["current"]["mean"] == pytest.approx(8 / 3)
    (example,) = found["side_by_side"]
    assert example["current"] == f"a\n\nuser: {'b' * 90}\n\nassistant: c"
