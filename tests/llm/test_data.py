"""Rows become token ids: prefixes, begin and end tokens under real templates, columns, limits, counts, errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nashpo.llm.data import Limits, PreferenceData, prepare
from nashpo.llm.encoding import Encoder

Make = Callable[..., Any]

# The shapes of published chat templates: ChatML (Qwen), Llama 3, Mistral, Gemma, and one that ends no turn.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
        0,
    ),
    "chatml-thinking": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking"
        " %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>",
        0,
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        1,
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
        1,
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
        1,
    ),
    "no end": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "</s>",
        0,
    ),
}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def encoder(byte_tokenizer: Make) -> Encoder:
    return Encoder(byte_tokenizer())


def text_of(encoder: Encoder, ids: Any) -> str:
    return encoder.tokenizer.decode(list(ids), skip_special_tokens=False)


def scored_text(encoder: Encoder, scored: Any) -> str:
    return text_of(encoder, [i for i, m in zip(scored.ids, scored.mask, strict=True) if m])


# ------------------------------------------------------------------------------------------------- begin, end, prefix


@pytest.mark.parametrize("begin", [True, False], ids=["begin token", "none"])
@pytest.mark.parametrize("written", ["", "<s>"], ids=["plain", "written out"])
def test_text_has_one_begin_and_one_end(begin: bool, written: str, byte_tokenizer: Make) -> None:
    if written and not begin:
        pytest.skip("a tokenizer without begin token keeps what the text says")
    made = Encoder(byte_tokenizer(begin=begin))
    rows = [{"prompt": f"{written}Say: ", "chosen": "yes", "rejected": "no</s>"}]
    data = prepare(rows, made)
    for scored, response in zip(data.responses.sequences[0], ("yes", "no"), strict=True):
        assert text_of(made, scored.ids) == ("<s>" if begin else "") + f"Say: {response}</s>"
        assert scored_text(made, scored) == f"{response}</s>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_have_one_begin_and_one_end(name: str, byte_tokenizer: Make) -> None:
    """Llama 3's and Gemma's turns end with a token that is not the tokenizer's end token."""
    template, end, begins = TEMPLATES[name]
    extra = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_tokenizer(template=template, extra=(*extra, "<start_of_turn>", "<end_of_turn>"))
    end_id = tokenizer.convert_tokens_to_ids(end)
    made = Encoder(tokenizer, [tokenizer.eos_token_id, end_id])
    rows = [{"prompt": [user("Say")], "chosen": [assistant("yes")], "rejected": "no"}]
    data = prepare(rows, made)
    for scored, response in zip(data.responses.sequences[0], ("yes", "no"), strict=True):
        assert list(scored.ids).count(tokenizer.bos_token_id) == begins
        assert scored.ids[-1] == end_id
        assert scored.mask[-1] == 1
        assert scored_text(made, scored).replace("\n", "").strip() == f"{response}{end}"
        start = scored.mask.index(1)
        sampled = tokenizer.apply_chat_template(
            [user("Say")], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert list(scored.ids[:start]) == list(sampled), "a response follows the tokens that a sampler is given"
    assert not data.report.seen.get("boundary")


def test_template_arguments_of_trainer_and_row(byte_tokenizer: Make) -> None:
    """Generation puts an empty thought that the finished turn lacks: the sampler's header stays, and is counted."""
    template, _, _ = TEMPLATES["chatml-thinking"]
    tokenizer = byte_tokenizer(template=template, extra=("<|im_start|>", "<|im_end|>"))
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    both = [
        prepare([row], Encoder(tokenizer, [end_id], {"enable_thinking": False})),
        prepare([{**row, "chat_template_kwargs": {"enable_thinking": False}}], Encoder(tokenizer, [end_id])),
    ]
    for data in both:
        decoded = tokenizer.decode(data.responses.sequences[0][0].ids)
        assert decoded.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nb<|im_end|>")
        assert data.report.seen["boundary"] == 2


def test_several_assistant_spans_are_scored_and_nothing_between(byte_tokenizer: Make) -> None:
    template, _, _ = TEMPLATES["chatml"]
    tokenizer = byte_tokenizer(template=template, extra=("<|im_start|>", "<|im_end|>"))
    made = Encoder(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    turns = [assistant("one"), user("and?"), assistant("two")]
    data = prepare([{"prompt": [user("go")], "chosen": turns, "rejected": [assistant("stop")]}], made)
    long, short = data.responses.sequences[0]
    assert scored_text(made, long) == "one<|im_end|>two<|im_end|>"
    assert scored_text(made, short) == "stop<|im_end|>"
    changes = np.flatnonzero(np.diff([0, *long.mask]) == 1)
    assert len(changes) == 2


def test_conversations_that_hold_their_prompt(byte_tokenizer: Make) -> None:
    """As UCLA's data: a text prompt beside whole conversations; and no prompt column at all."""
    tokenizer = byte_tokenizer(template=TEMPLATES["chatml"][0], extra=("<|im_start|>", "<|im_end|>"))
    made = Encoder(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    whole = {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}
    split = {"prompt": [user("q")], "chosen": whole["chosen"][1:], "rejected": whole["rejected"][1:]}
    expected = prepare([split], made).responses.sequences
    assert prepare([whole], made).responses.sequences == expected
    assert prepare([{"prompt": "q", **whole}], made).responses.sequences == expected


def test_merges_across_the_boundary_are_kept_apart_and_counted() -> None:
    """A tokenizer that merges "b" and "c": the prompt's tokens stay those that a sampler is given."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"a": 0, "b": 1, "c": 2, "bc": 3, "</s>": 4}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c")]))
    made = Encoder(PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="</s>"))
    data = prepare([{"prompt": "ab", "chosen": "c", "rejected": "a"}], made)
    assert [scored.ids for scored in data.responses.sequences[0]] == [(0, 1, 2, 4), (0, 1, 0, 4)]
    assert data.report.seen["boundary"] == 1


# -------------------------------------------------------------------------------------------------- columns and payoffs


def test_payoffs_of_the_column_forms(encoder: Encoder) -> None:
    pair = {"prompt": "p", "chosen": "yes", "rejected": "no"}

    def values(row: dict[str, Any], limits: Limits) -> tuple[Any, Any]:
        data = prepare([row], encoder, limits)
        return data.values[0].numpy(), data.preferred[0].numpy()

    cases: list[tuple[dict[str, Any], Limits, list[float], float]] = [
        ({}, Limits(), [0.5, -0.5], 1.0),
        ({}, Limits(label_smoothing=0.1), [0.4, -0.4], 0.9),
        ({"chosen_probs": 0.8}, Limits(label_smoothing=0.1), [0.3, -0.3], 0.8),
        ({"chosen_probs": 0.8, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.2}, Limits(), [0.2, -0.3], 0.8),
    ]
    for columns, limits, expected, label in cases:
        found, preferred = values({**pair, **columns}, limits)
        np.testing.assert_allclose(found, expected, atol=1e-15)
        np.testing.assert_allclose(preferred, [[0.5, label], [1 - label, 0.5]], atol=1e-15)
    matrix = [[0.5, 0.9, 0.6], [0.1, 0.5, 0.2], [0.4, 0.8, 0.5]]
    data = prepare([{"prompt": "p", "completions": ["a", "b", "c"], "win_matrix": matrix}], encoder)
    np.testing.assert_allclose(data.values[0], np.mean(matrix, axis=1) - 0.5, atol=1e-15)
    np.testing.assert_allclose(data.preferred[0], matrix, atol=1e-15)
    assert (data.samples.item(), data.best.item(), data.worst.item()) == (3, 0, 1)


def test_generated_completions_stand_beside_the_pair(encoder: Encoder) -> None:
    rows = [
        {"prompt": "p", "chosen": "yes", "rejected": "no", "completions": ["a", "b"]},
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
    ]
    data = prepare(rows, encoder)
    np.testing.assert_array_equal(data.responses.weights, [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]])
    assert data.generated is not None
    np.testing.assert_array_equal(data.generated, [[0, 0, 0.5, 0.5], [0, 0, 0, 0]])


def test_anything_with_length_and_items_is_a_data_set(encoder: Encoder, small_pairs: list[Any]) -> None:
    class Columns:
        """As `datasets.Dataset`, whose missing values are None."""

        def __len__(self) -> int:
            return len(small_pairs)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**small_pairs[index], "chosen_probs": None}

    expected = prepare(small_pairs, encoder)
    assert prepare(Columns(), encoder).responses.sequences == expected.responses.sequences
    assert prepare(tuple(small_pairs), encoder).responses.names == tuple(str(i) for i in range(13))
    with pytest.raises(ValueError, match="a data set needs __len__ and __getitem__; generator has not"):
        prepare((row for row in small_pairs), encoder)


PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no"}
SAMPLES = {"prompt": "p", "completions": ["a", "b"], "win_matrix": [[0.5, 0.6], [0.4, 0.5]]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "score": 1}, "unknown column score: name it in ignored_columns or take it out; expected are prompt"),
        ({"prompt": "p", "chosen": "a"}, "missing column rejected; expected are prompt, chosen, rejected or prompt"),
        ({"prompt": "p", "completions": ["a", "b"]}, "missing column win_matrix"),
        ({**SAMPLES, "chosen": "a"}, "win_matrix and chosen say the same twice"),
        ({**PAIR, "chosen_probs_win": 0.5}, "chosen_probs_win and chosen_probs_lose come together"),
        ({**PAIR, "chosen_probs": 1.2}, r"chosen_probs = 1.2 is no probability in \[0, 1\]"),
        ({**PAIR, "chosen_probs": float("nan")}, "chosen_probs = nan is no probability"),
        ({**PAIR, "chosen": ""}, "an empty completion has nothing to score"),
        ({**PAIR, "chosen": []}, "an empty completion has nothing to score"),
        ({**PAIR, "chosen": 3}, "a response must be text, messages or token ids, not int"),
        ({**PAIR, "chosen": [500]}, "token id 500 is outside the model's vocabulary of 259"),
        ({**SAMPLES, "completions": ["a"]}, "1 completions cannot be compared"),
        ({**SAMPLES, "win_matrix": [[0.5, 0.6]]}, "win_matrix is 1 × 2 for 2 completions: it must be 2 × 2"),
        ({**SAMPLES, "win_matrix": [[0.5, -0.1], [1.1, 0.5]]}, r"win_matrix\[0\]\[1\] = -0.1 is no probability"),
        ({**SAMPLES, "win_matrix": [[0.5, 0.6], [0.6, 0.5]]}, r"= 1.2 must be 1 \(the diagonal is 1/2\)"),
        ({**PAIR, "prompt": [user("q")]}, "the tokenizer has no chat template"),
    ],
)
def test_bad_rows_are_refused_by_number(row: dict[str, Any], message: str, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        prepare([PAIR if "win_matrix" not in row else SAMPLES, row], encoder, vocabulary=259)
    assert str(refused.value).startswith("row 1 of the data set: ")
    assert "\n" not in str(refused.value)


def test_ignored_columns(encoder: Encoder) -> None:
    assert len(prepare([{**PAIR, "score": 1}], encoder, ignored=["score"])) == 1


def test_a_prompt_needs_a_token(byte_tokenizer: Make) -> None:
    with pytest.raises(ValueError, match="an empty prompt has no token that a response could follow"):
        prepare([{**PAIR, "prompt": ""}], Encoder(byte_tokenizer(begin=False)))
    assert len(prepare([{**PAIR, "prompt": ""}], Encoder(byte_tokenizer()))) == 1


# ------------------------------------------------------------------------------------------------- limits and counts


def test_truncation(encoder: Encoder) -> None:
    """<s> + 10 letters + 3 letters + </s> are 15 tokens."""
    rows = [{"prompt": "0123456789", "chosen": "yes", "rejected": "no"}, {**PAIR}]
    dropped = prepare(rows, encoder, Limits(max_length=12))
    assert (len(dropped), dropped.report.dropped) == (1, {"too_long": 1})
    cut = prepare(rows, encoder, Limits(max_length=12, truncation="left"))
    assert [text_of(encoder, s.ids) for s in cut.responses.sequences[0]] == ["<s>3456789yes</s>", "<s>23456789no</s>"]
    assert cut.report.seen["truncated"] == 2
    with pytest.raises(ValueError, match="row 0 of the data set: a prompt of 11 and a response of 4 tokens exceed"):
        prepare(rows, encoder, Limits(max_length=12, truncation="error"))
    short = prepare(rows, encoder, Limits(max_prompt_length=5, truncation="left"))
    assert text_of(encoder, short.responses.sequences[0][0].ids) == "<s>6789yes</s>"
    long = {**PAIR, "chosen": "y" * 30}
    kept = prepare([long, PAIR], encoder, Limits(max_length=12, truncation="left"))
    assert kept.report.dropped == {"too_long": 1}, "a response is never cut"


def test_responses_without_end_token(encoder: Encoder) -> None:
    """Token ids come from a sampler: without an end token they were cut off."""
    rows = [
        {"prompt": [0, 10], "chosen": [11, 1], "rejected": [12]},
        {"prompt": [0], "chosen": [5, 1], "rejected": [1]},
    ]
    kept = prepare(rows, encoder)
    assert (len(kept), kept.report.seen["missing_eos"]) == (2, 1)
    assert kept.responses.sequences[0][1].ids == (0, 10, 12)
    dropped = prepare(rows, encoder, Limits(missing_eos="drop"))
    assert (len(dropped), dropped.report.dropped) == (1, {"unfinished": 1})
    assert "1 with a response that has no end token" in str(dropped.report)


def test_identical_and_tied_rows_are_counted_and_left_out(encoder: Encoder) -> None:
    tie = [[0.5, 0.5], [0.5, 0.5]]
    rows = [
        PAIR,
        {**PAIR, "rejected": "yes"},
        {**PAIR, "chosen_probs": 0.5},
        {**SAMPLES, "win_matrix": tie},
        {**SAMPLES, "completions": ["a", "a"]},
    ]
    data = prepare(rows, encoder)
    assert data.responses.names == ("0",)
    assert data.report.dropped == {"identical": 2, "ties": 2}
    assert str(data.report) == (
        "1 of 5 rows kept; left out: 2 with identical responses, 2 on which no response is better than another"
    )
    assert len(prepare(rows, encoder, Limits(ties="keep"))) == 3
    with pytest.raises(
        ValueError, match="no row of the data set is left: 0 of 1 rows kept; left out: 1 with identical"
    ):
        prepare([rows[1]], encoder)
    with pytest.raises(ValueError, match="the data set has no rows"):
        prepare([], encoder)


def test_items_are_places(encoder: Encoder) -> None:
    data: PreferenceData = prepare([PAIR, {**PAIR, "chosen": "yes!"}], encoder)
    assert [data[place] for place in range(len(data))] == [0, 1]
    assert data.lengths([1]) == [5, 3]
    assert data.tokens([0, 1]) == (2 + 4) + (2 + 3) + (2 + 5) + (2 + 3)
