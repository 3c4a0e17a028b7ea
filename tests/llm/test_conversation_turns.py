"""What stands between two answers is the chat template's own text; templates that rewrite earlier turns are refused.

The templates are written here after the ways that templates have: end tokens or none, answers that are trimmed,
reasoning that is stripped from earlier answers, a system message that wanders to the last user's turn.
"""

from collections.abc import Callable
from typing import Any

import pytest

from nashpo.llm.conversation.turns import TurnWriter
from nashpo.llm.encoding import Encoder
from nashpo.llm.prompts import Prompt

MARKED = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BARE = (
    "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)
STRIPPED = (
    "{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "[{{ m.role }}]{{ c }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
WANDERING = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]"
    "{% if m.role == 'user' and (loop.last or loop.nextitem is undefined) %}{{ s }} {% endif %}"
    "{{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content[:8] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('only users and assistants speak here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

Make = Callable[..., Any]


def writer(byte_tokenizer: Make, template: str | None, text_template: str | None = None) -> TurnWriter:
    return TurnWriter(Encoder(byte_tokenizer(begin=False, template=template)), text_template)


def asked(made: TurnWriter, *messages: tuple[str, str]) -> Prompt:
    text = [{"role": role, "content": content} for role, content in messages or [("user", "Hello?")]]
    return Prompt.of(text, made.encoder.prompt(text))


def said(made: TurnWriter, ids: list[int]) -> str:
    return str(made.encoder.tokenizer.decode(ids, skip_special_tokens=False))


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


REPLY = {"role": "user", "content": "Why?"}


def test_the_tokens_between_are_the_templates(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, MARKED)
    prompt = asked(made)
    made.check([prompt])
    assert said(made, made.between(prompt, [answer("So.")], REPLY, True)) == "\n[user]Why?</s>\n[assistant]"
    # An answer that was cut is closed by the template's end token, which the policy did not draw.
    assert said(made, made.between(prompt, [answer("So.")], REPLY, False)) == "</s>\n[user]Why?</s>\n[assistant]"


def test_a_later_turn_brings_only_what_is_new(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, MARKED)
    turns = [answer("So."), REPLY, answer("Thus.")]
    assert said(made, made.between(asked(made), turns, REPLY, True)) == "\n[user]Why?</s>\n[assistant]"


def test_the_whole_conversation_is_what_the_template_prints(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, MARKED)
    prompt = asked(made, ("system", "Be short."), ("user", "Hello?"))
    drawn = [*made.encoder.text_ids("So."), made.encoder.end_ids[0]]
    row = [*prompt.ids, *drawn, *made.between(prompt, [answer("So.")], REPLY, True)]
    assert row == made.encoder.prompt([*prompt.text, answer("So."), REPLY])


@pytest.mark.parametrize("drawn", ["So.\n", " So.", "", "<think>x</think> So."])
def test_spaces_that_a_template_trims_do_no_harm(byte_tokenizer: Make, drawn: str) -> None:
    made = writer(byte_tokenizer, MARKED)
    assert said(made, made.between(asked(made), [answer(drawn)], REPLY, True)) == "\n[user]Why?</s>\n[assistant]"


def test_a_template_without_end_tokens(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, BARE)
    prompt = asked(made)
    made.check([prompt])
    for finished in (True, False):
        between = said(made, made.between(prompt, [answer("So.")], REPLY, finished))
        assert between == "\n### user: Why?\n### assistant: "


def test_reasoning_that_is_stripped_from_earlier_answers_is_refused(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, STRIPPED)
    with pytest.raises(ValueError, match="prints earlier turns otherwise .* strips or re-orders .* '<think>"):
        made.check([asked(made)])
    # A plain answer is left as it is; one with a thought is refused when it comes.
    assert said(made, made.between(asked(made), [answer("So.")], REPLY, True)) == "[user]Why?</s>[assistant]"
    with pytest.raises(ValueError, match="it then prints ' So"):
        made.between(asked(made), [answer("<think>x</think> So.")], REPLY, True)


@pytest.mark.parametrize("template", [WANDERING, EMPTY_THOUGHT])
def test_templates_that_rewrite_earlier_turns_are_refused(byte_tokenizer: Make, template: str) -> None:
    made = writer(byte_tokenizer, template)
    with pytest.raises(ValueError, match="prints earlier turns otherwise once a conversation goes on"):
        made.check([asked(made, ("system", "Be short."), ("user", "Hello?"))])


def test_a_template_that_moves_a_system_message_is_fine_without_one(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, WANDERING.replace("{{ s }} ", "{{ s }}"))
    made.check([asked(made)])
    assert said(made, made.between(asked(made), [answer("So.")], REPLY, True)) == "[user]Why?</s>[assistant]"


def test_an_answer_must_be_printed_whole(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, FORGETFUL)
    made.check([asked(made)])
    with pytest.raises(ValueError, match="leaves out a part of an answer, which begins with 'So it was"):
        made.between(asked(made), [answer("So it was, and so it will be.")], REPLY, True)


def test_a_role_that_the_template_does_not_know_is_one_line(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, STRICT)
    mend = "let conversation.user.role, or the role of the function's messages, be one that it takes .* not 'tool'"
    with pytest.raises(ValueError, match=f"refuses messages of the roles user, assistant, tool: only users.*{mend}"):
        made.between(asked(made), [answer("So.")], {"role": "tool", "content": "4"}, True)


def test_every_prompt_is_held_against_the_template(byte_tokenizer: Make) -> None:
    """What goes wrong behind the second prompt only is seen too, and so is the role of the other side's messages."""
    made = writer(byte_tokenizer, WANDERING.replace("{{ s }} ", "{{ s }}"))
    plain, system = asked(made), asked(made, ("system", "Be short."), ("user", "Hello?"))
    made.check([plain, plain])
    with pytest.raises(ValueError, match="prints earlier turns otherwise"):
        made.check([plain, system])
    made = writer(byte_tokenizer, STRICT)
    made.check([asked(made)])
    with pytest.raises(ValueError, match="refuses messages of the roles user, assistant, tool"):
        made.check([asked(made)], "tool")
    made = writer(byte_tokenizer, "{% if shout is defined %}!{% endif %}" + MARKED)
    text = [{"role": "user", "content": "Hello?"}]
    with pytest.raises(ValueError, match="chat_template_kwargs of its own row"):
        made.check([asked(made), Prompt.of(text, made.encoder.prompt(text, {"shout": True}))])


@pytest.mark.parametrize(
    ("template", "goes_on"),
    [
        (MARKED, True),
        (BARE, True),
        (MARKED.replace("[{{ m.role }}]", "{% if m.content == '' %}{{ raise_exception('empty') }}{% endif %}"), False),
        (MARKED.replace("</s>", "{% if m.content %}</s>{% endif %}").replace("[{{ m.role }}]", ""), False),
    ],
)
def test_an_empty_answer_ends_a_conversation_that_could_not_be_printed(
    byte_tokenizer: Make, template: str, goes_on: bool
) -> None:
    made = writer(byte_tokenizer, template)
    assert made.follows(asked(made), answer("So."))
    assert made.follows(asked(made), answer("")) == made.follows(asked(made), answer(" \n")) == goes_on
    assert writer(byte_tokenizer, None, "|{text}|").follows(Prompt.of("Hello?", [5]), answer(""))


def test_plain_text_needs_a_template_of_its_own(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, None)
    with pytest.raises(ValueError, match="is plain text.*prompts.chat=true.*conversation.text_template"):
        made.check([Prompt.of("Hello?", [5])])


def test_plain_text_goes_on_by_the_text_template(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, None, "\n\nUser: {text}\n\nAssistant:")
    prompt = Prompt.of("Hello?", made.encoder.prompt("Hello?"))
    made.check([prompt])
    for finished in (True, False):
        assert said(made, made.between(prompt, [answer("So.")], REPLY, finished)) == "\n\nUser: Why?\n\nAssistant:"
    first = made.text(prompt.text, answer("So."), 1, REPLY)
    assert first == "Hello?So.</s>\n\nUser: Why?\n\nAssistant:"
    # An answer that was cut has no end token; what a server of text reads are the tokens that are trained on.
    assert made.text(first, answer("Thus."), None, REPLY) == f"{first}Thus.\n\nUser: Why?\n\nAssistant:"


def test_a_turn_without_tokens_is_refused(byte_tokenizer: Make) -> None:
    made = writer(byte_tokenizer, None, "{text}")
    with pytest.raises(ValueError, match="the user's turn '' has no tokens"):
        made.between(Prompt.of("Hello?", [5]), [answer("So.")], {"role": "user", "content": ""}, True)


def test_a_prompt_with_settings_of_its_own_is_refused(byte_tokenizer: Make) -> None:
    template = "{% if shout is defined %}!{% endif %}" + MARKED
    made = writer(byte_tokenizer, template)
    text = [{"role": "user", "content": "Hello?"}]
    with pytest.raises(ValueError, match="chat_template_kwargs of its own row"):
        made.check([Prompt.of(text, made.encoder.prompt(text, {"shout": True}))])
