"""Conversations continued from kept keys and values: the same draws as when all is read anew, and far less read.

Draws agree in float32 but where rounding decides, a chance near 1e-6 per token (`nashpo.llm.engines.noise`); among the
few hundred tokens of a test here none is decided so. What they are drawn from is compared to rounding as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import families
import pytest
import torch
from engine_world import Policy, context, lent, prompt, prompts
from families import VOCABULARY, build
from torch import Tensor

from nashpo.llm.engines import local
from nashpo.llm.engines.config import TransformersConfig
from nashpo.llm.engines.engine import Keeping
from nashpo.llm.engines.local import TransformersEngine
from nashpo.llm.engines.noise import KeyedDraw
from nashpo.llm.engines.prefixes import Kept, Piece, Prefixes, Reading, common, plain_layers
from nashpo.llm.prompts import Prompt
from nashpo.llm.responses import Padded, Scored

END = 1
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "gpt2": {},  # learned absolute positions
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {},
    "gemma3": {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.fixture(autouse=True)
def more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"qwen2": "Qwen2", "gemma3": "Gemma3Text", "mamba": "Mamba", "lfm2": "Lfm2"}
    for family, name in more.items():
        monkeypatch.setitem(families.FAMILIES, family, (name, {}))


def engine(max_new_tokens: int = 8, **options: Any) -> TransformersEngine:
    config = TransformersConfig(K=1, max_new_tokens=max_new_tokens, **options)
    return TransformersEngine(config, context(end_ids=(END, 4, 7, 30, 31, 32, 33, 34)))


def first_turns(count: int = 5, K: int = 3) -> list[Prompt]:
    """K conversations behind each prompt: equal ids, keys of their own. One prompt is a single token."""
    asked = [prompt(9), *prompts(count - 1, VOCABULARY, longest=30)]
    return [Prompt(f"{one.key}/{k}", one.text, one.ids) for one in asked for k in range(K)]


def talk(drawing: TransformersEngine, policy: Any, turns: int = 3, asked: Sequence[Prompt] | None = None) -> list[Any]:
    """The responses of each turn, by the key of their prompts; every fourth conversation ends after a turn."""
    going, found = list(first_turns() if asked is None else asked), []
    for turn in range(turns):
        answers = drawing.sample(policy, going, turn)
        found.append({p.key: row[0].ids for p, row in zip(going, answers, strict=True)})
        later = []
        for i, (p, (answer,)) in enumerate(zip(going, answers, strict=True)):
            reply = tuple(40 + (i + j) % 20 for j in range(1 + i % 4))
            if i % 4 != 3:
                later.append(Prompt(f"{p.key}.{turn}", p.text, (*p.ids, *answer.ids, *reply)))
        going = later
    return found


@contextmanager
def counted(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of each call of a model."""
    seen: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with hook:
        yield seen


@contextmanager
def logits_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, int], Tensor]]:
    """What every token is drawn from, by the noise's key of its response and its position in it."""
    seen: dict[tuple[int, int], Tensor] = {}

    class Seeing(KeyedDraw):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            position = input_ids.shape[1] - self.prompt_length
            seen.update(((key, position), row.clone()) for key, row in zip(self.keys.tolist(), scores, strict=True))
            chosen: Tensor = super().__call__(input_ids, scores)
            return chosen

    with monkeypatch.context() as patch:
        patch.setattr(local, "KeyedDraw", Seeing)
        yield seen


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("size", [64, 4])
def test_a_conversation_is_continued_as_if_it_were_read_anew(family: str, size: int) -> None:
    """Ragged prompts and replies, rows that end early, batches smaller than the shard."""
    model = build(family, **PLAIN[family])
    policy, drawing = Policy.of(model), engine(batch_size=size)
    with counted(model) as anew:
        expected = talk(drawing, policy)
    with counted(model) as continued, drawing.keeping():
        found = talk(drawing, policy)
    assert found == expected
    answers = [ids for turn in expected for ids in turn.values()]
    assert {len(ids) for ids in answers} > {1, 2, 8}
    read = [sum(rows * columns for rows, columns in seen if columns > 1) for seen in (anew, continued)]
    assert read[1] < 0.45 * read[0]
    with drawing.keeping():  # the same calls again, after others
        assert talk(drawing, policy) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_drawn_from_agrees_to_rounding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits of all turns. 1e-5 of the largest is some hundred roundings of float32."""
    model = build(family)
    policy, drawing = Policy.of(model), engine()
    with logits_seen(monkeypatch) as expected:
        answers = talk(drawing, policy)
    with logits_seen(monkeypatch) as found, drawing.keeping():
        talk(drawing, policy)
    both = found.keys() & expected.keys()  # behind its end a row is drawn on as long as its batch
    assert len(both) >= sum(len(ids) for turn in answers for ids in turn.values()) > 100
    for key in both:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5 * expected[key].abs().max().item())
    assert any(not torch.equal(found[key], expected[key]) for key in both)  # they were summed up in another order


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_on_kept_columns_agree_with_one_forward_of_everything(family: str) -> None:
    """Against the model itself, and only the needed columns are read: a row kept wholly, one in part, one not."""
    model, prefixes, policy = build(family).eval(), Prefixes(1000), object()
    generator = torch.Generator().manual_seed(0)
    whole, part, new = (tuple(torch.randint(2, VOCABULARY, (n,), generator=generator).tolist()) for n in (12, 9, 3))
    with torch.no_grad():
        assert prefixes.begin(policy, model)
        first = [whole, part[:7]]
        reading, _ = continued(prefixes, model, first)
        reading.keep([(5,), (5,)])
        assert prefixes.tokens == 12 + 7
        cases = (
            ([whole, part], [(2, 2)]),
            ([part, whole, part, whole], [(2, 1), (4, 1)]),
            ([new, whole, part], [(3, 3)]),
            ([whole, whole], [(2, 1)]),
        )
        for rows, shapes in cases:
            with counted(model) as seen:
                _, found = continued(prefixes, model, rows)
            assert seen == shapes
            for row, logits in zip(rows, found, strict=True):
                alone = model(input_ids=torch.tensor([row])).logits[0, -1]
                torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5 * alone.abs().max().item())


def continued(prefixes: Prefixes, model: Any, rows: Sequence[tuple[int, ...]]) -> tuple[Reading, Tensor]:
    """A batch as the engine reads it, and the logits of its first token."""
    batch = Padded.from_sequences([Scored(row, (0,) * len(row)) for row in rows], 0, left=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    reading = prefixes.read(model, rows, **inputs)
    told = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    answer = model.generate(
        **inputs, **told, past_key_values=reading.cache, output_logits=True, return_dict_in_generate=True
    )
    return reading, answer.logits[0]


def pretend(begin: int, end: int) -> Piece:
    """A piece without keys and values, cut and counted like others."""
    return Piece(end - begin, ())


def filled(limit: int, *sequences: tuple[int, ...]) -> Prefixes:
    prefixes = Prefixes(limit)
    for ids in sequences:
        base, length = prefixes.find(ids)
        prefixes.extend(base, length, ids, pretend)
    return prefixes


def kept(prefixes: Prefixes, *sequences: tuple[int, ...]) -> list[int]:
    return [prefixes.find(ids)[1] for ids in sequences]


def test_the_longest_common_beginning_is_found() -> None:
    """Against comparing with every sequence."""
    generator = torch.Generator().manual_seed(0)
    several = [tuple(torch.randint(0, 3, (n % 7 + 1,), generator=generator).tolist()) for n in range(60)]
    prefixes = filled(10_000, *several[:30])
    assert [prefixes.find(ids)[1] for ids in several] == [max(common(ids, o) for o in several[:30]) for ids in several]
    for ids in several:
        found, length = prefixes.find(ids)
        assert found is None or found.ids[:length] == ids[:length]


def test_shared_tokens_count_once_and_the_limit_holds() -> None:
    prefixes = filled(12, (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 7), (1, 2, 8))
    assert prefixes.tokens == 4 + 2 + 1 + 1
    found, length = prefixes.find((1, 2, 3, 4, 5, 6, 9))
    assert isinstance(found, Kept)
    assert (length, [tokens for _, tokens in found.pieces]) == (6, [4, 2])
    assert prefixes.extend(found, 6, (1, 2, 3, 4, 5, 6, 9, 9, 9, 9), pretend) is not None
    assert prefixes.tokens == 12
    assert prefixes.extend(None, 0, (5,), pretend) is None  # all was used in this call
    assert prefixes.tokens == 12


def test_what_was_not_used_for_longest_is_dropped_for_what_is_new() -> None:
    model, policy = build("llama"), object()
    prefixes = Prefixes(9)
    a, b, c, d = (1,) * 3, (2,) * 3, (3,) * 3, (4,) * 4
    prefixes.begin(policy, model)
    for ids in (a, b, c):
        prefixes.extend(None, 0, ids, pretend)
    prefixes.begin(policy, model)
    assert kept(prefixes, (*a, 5)) == [3]  # so b is the oldest
    prefixes.extend(None, 0, d, pretend)  # b and c go
    assert prefixes.tokens == 7
    assert kept(prefixes, a, b, c, d) == [3, 0, 0, 4]
    prefixes.begin(policy, model)
    prefixes.extend(None, 0, b, pretend)  # a was used before d
    assert kept(prefixes, a, b, c, d) == [0, 3, 0, 4]
    prefixes.begin(object(), model)  # another policy
    assert prefixes.tokens == 0
    assert kept(prefixes, b, d) == [0, 0]


def test_a_piece_lives_as_long_as_a_sequence_that_goes_on_from_it() -> None:
    model, policy = build("llama"), object()
    prefixes = Prefixes(8)
    prefixes.begin(policy, model)
    first = prefixes.extend(None, 0, (1, 2, 3), pretend)
    prefixes.begin(policy, model)
    prefixes.extend(first, 3, (1, 2, 3, 4, 5), pretend)
    prefixes.begin(policy, model)
    assert kept(prefixes, (1, 2, 3, 4, 5, 6)) == [5]
    prefixes.extend(None, 0, (7, 7, 7), pretend)
    assert prefixes.tokens == 8
    assert prefixes.extend(None, 0, (8,), pretend) is None  # (1, 2, 3) was dropped for it, and freed nothing
    assert prefixes.tokens == 8
    assert kept(prefixes, (1, 2, 3, 9), (1, 2, 3, 4, 5)) == [3, 5]


@pytest.mark.parametrize("limit", [0, 1, 40, 200])
def test_little_room_changes_the_reading_only(limit: int) -> None:
    model = build("llama")
    policy, expected = Policy.of(model), talk(engine(), Policy.of(model))
    drawing = engine(cache_tokens=limit, batch_size=5)
    for _ in range(2):
        with drawing.keeping():
            assert talk(drawing, policy) == expected
            if limit:
                assert drawing._prefixes is not None
                assert drawing._prefixes.tokens <= limit


def test_all_is_given_back_at_the_end_also_after_a_failure() -> None:
    drawing, policy = engine(), Policy.of(build("llama"))
    assert isinstance(drawing, Keeping)
    with pytest.raises(ValueError, match="no token"), drawing.keeping():
        drawing.sample(policy, [*prompts(3, VOCABULARY), prompt()], 0)
    assert drawing._prefixes is None
    with drawing.keeping():
        with drawing.keeping():
            drawing.sample(policy, prompts(3, VOCABULARY), 0)
        assert drawing._prefixes is not None  # the outer one still lasts
        assert drawing._prefixes.tokens > 0
        drawing.close()
        assert drawing._prefixes.tokens == 0


def test_another_policy_is_not_drawn_from_the_first_ones_keys() -> None:
    first, second = (Policy.of(build("llama", seed)) for seed in (0, 1))
    drawing = engine()
    expected = talk(drawing, second)
    with drawing.keeping():
        talk(drawing, first)
        assert talk(drawing, second) == expected


@pytest.mark.parametrize("family", OTHERS)
def test_models_with_other_caches_are_read_anew(family: str) -> None:
    """Windows, convolutions, recurrent states, frequencies that depend on the length."""
    model = build(family, **OTHERS[family])
    assert plain_layers(model) == ()
    policy, drawing = Policy.of(model), engine()
    with counted(model) as anew:
        expected = talk(drawing, policy, 2)
    with counted(model) as again, drawing.keeping():
        assert talk(drawing, policy, 2) == expected
    assert [shape for shape in again if shape != (1, 1)] == anew  # and one token, which tells


def test_plain_models_are_told_by_their_cache() -> None:
    for family, special in PLAIN.items():
        layers = plain_layers(build(family, **special))
        assert [tuple(t.shape) for t in layers[0]] == [(4 if family == "gpt2" else 2, 0, 8)] * 2


def test_a_mixture_is_read_anew() -> None:
    parts = [(0.7, partial(lent, build("llama", 0))), (0.3, partial(lent, build("llama", 1)))]
    drawing, expected = engine(), None
    for keep in (nullcontext, drawing.keeping):
        with keep():
            found = talk(drawing, Policy(parts), 2)
        assert found == (expected or found)
        expected = found


def test_branches_go_on_from_the_state_they_share() -> None:
    """Continuations of one state with keys of their own: the state is kept, and read once for all of them."""
    model = build("qwen2")
    policy, drawing = Policy.of(model), engine()

    def branches(turn: Sequence[Prompt]) -> list[Prompt]:
        answers = drawing.sample(policy, turn, 3)
        ids = [(*p.ids, *row[0].ids, 50, 51) for p, row in zip(turn, answers, strict=True)]
        return [Prompt(f"{p.key}:{b}", p.text, i) for p, i in zip(turn, ids, strict=True) for b in range(3)]

    start = first_turns(3, 2)
    expected = branches(branches(start))
    with drawing.keeping():
        second = branches(start)
        with counted(model) as seen:
            assert branches(second) == expected
    states = {p.ids for p in second}
    assert len(states) < len(second)
    assert [rows for rows, columns in seen if columns > 1] == [len(states)]


@pytest.mark.parametrize("value", [-1, None, True, 2.5])
def test_the_limit_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sampling\.cache_tokens is .* whole number of tokens, at least 0"):
        TransformersConfig(cache_tokens=value)
