"""Conversations in a recipe: read, refused with the mend, and counted right in the dry run."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.conversation.users.config import ScriptConfig
from nashpo.llm.hardware import HARDWARE, Cluster
from nashpo.llm.lengths import Lengths
from nashpo.llm.recipe import conversations, footprint, outlook, timing
from nashpo.llm.recipe.counting import work
from nashpo.llm.recipe.model_limits import Limits, check_lengths
from nashpo.llm.recipe.plan import plan
from nashpo.llm.recipe.planned import Plan
from nashpo.llm.recipe.schema import ModelSpec, Recipe, parse_recipe

SMALL = """
model: {path: MODEL}
rule: {name: RULE}
prompts: {path: PROMPTS, heldout: 10, chat: true}
sampling: {K: 4, max_new_tokens: 20, batch_size: 8}
conversation: {turns: 3, user: {kind: script, says: ["Why?", "And then?"]}}
judge: {kind: pairrm}
training: {per_device_train_batch_size: 4, num_train_epochs: 2}
iterations: 3
evaluation: {K: 2}
output_dir: OUT/run
"""
TINY = """
model: {build: {symbols: 3, length: 1, turns: 2}}
rule: {name: onpo, eta: 1}
iterations: {count: 1, prompts: all}
sampling: {K: 4, max_new_tokens: 1}
conversation: {turns: 2, text_template: " {text} "}
evaluation: {K: 2, exact: true}
output_dir: runs/tiny
"""


def recipe(*overrides: str, text: str = SMALL, rule: str = "sppo, eta: 1") -> Recipe:
    return parse_recipe(text.replace("RULE", rule), "the test", overrides)


def refusal(*overrides: str, text: str = SMALL, rule: str = "sppo, eta: 1") -> str:
    with pytest.raises(ValueError) as caught:
        recipe(*overrides, text=text, rule=rule)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------------ reading


def test_the_key_is_read_written_and_left_out() -> None:
    found = recipe()
    assert found.conversation == ConversationConfig(turns=3, user=ScriptConfig(says=("Why?", "And then?")))
    assert parse_recipe(found.to_yaml(), "again").to_dict() == found.to_dict()
    assert recipe("conversation=null").conversation is None
    assert recipe("conversation.user={kind: function, function: 'a:b'}").to_dict()["conversation"]["user"] == {
        "kind": "function",
        "function": "a:b",
        "role": "user",
    }
    assert recipe(text=TINY).conversation == ConversationConfig(turns=2, text_template=" {text} ")


def test_settings_import_no_torch() -> None:
    code = "import sys; from nashpo.llm.conversation.config import ConversationConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["conversation.turns=1"],
            "conversation.turns is 1; it must be a whole number of the assistant's turns, at least",
        ),
        (["conversation.turns=null"], "conversation.turns = None must be a whole number"),
        (["conversation={user: {kind: script, says: [a]}}"], "conversation.turns is missing"),
        (["conversation.turn=2"], "unknown key conversation.turn; did you mean 'turns'"),
        (["conversation.user={kind: scrpt}"], "conversation.user.kind = 'scrpt' is unknown; did you mean 'script'"),
        (["conversation.user=null"], "conversation.user is missing: say who answers, as user={kind: script"),
        (["conversation.level=turn"], "conversation.level = 'turn' is unknown"),
        (
            ["conversation.branches=3"],
            "conversation.branches = 3 is for conversation.level=state, and it is trajectory",
        ),
        (["conversation.level=state", "conversation.branches=1"], "conversation.branches is 1; it must be"),
        (["conversation.max_tokens=20"], "conversation.max_tokens = 20 leaves no room for a second answer"),
        (["conversation.max_tokens=0"], "conversation.max_tokens is 0; it must be"),
        (["conversation.stop=['']"], "conversation.stop is ['']; it must be a list of texts"),
        (["conversation.stop=STOP"], "conversation.stop = 'STOP' must be a list"),
        (["conversation.text_template=' text '"], "it must be a text with {text} in it, once"),
        (["conversation.text_template='{text} {text}'"], "it must be a text with {text} in it, once"),
        (["sampling.K=1"], "sampling.K = 1: sppo compares responses to one prompt"),
        (["sampling=null"], "sampling is missing"),
        (
            ["model={build: {symbols: 3}}", "prompts=null", "judge=null"],
            "conversation.turns = 3, but model.build.turns = 1: set model.build.turns=3",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(overrides: list[str], wanted: str) -> None:
    assert wanted in refusal(*overrides)


def test_a_place_is_named_once() -> None:
    message = refusal("conversation.user={kind: script}")
    assert message == "conversation.user: a script needs exactly one of says and path, and none is given"


def test_rules_that_learn_from_pairs_have_no_conversations() -> None:
    pairs = ["prompts=null", "pairs=p.jsonl", "evaluation=null", "judge=null", "iterations=1"]
    assert "conversation is given, but dpo learns from labelled pairs: leave it out" in refusal(
        *pairs, rule="dpo, tau: 0.1"
    )


def test_a_tiny_model_and_its_conversations_have_as_many_turns() -> None:
    assert "conversation is missing: model.build.turns = 2" in refusal("conversation=null", text=TINY)
    assert "set conversation.turns=2" in refusal("conversation.turns=3", text=TINY)
    user = "conversation.user={kind: script, says: [red]}"
    assert "evaluation.exact is about the other side that model.build brings" in refusal(user, text=TINY)
    assert recipe(user, "evaluation.exact=false", text=TINY).conversation is not None


def test_a_budget_below_all_answers_is_noted() -> None:
    assert not [note for note in recipe().notes() if "max_tokens" in note]
    (note,) = [note for note in recipe("conversation.max_tokens=50").notes() if "max_tokens" in note]
    assert "conversation.max_tokens = 50 is less than 3 answers of sampling.max_new_tokens, 60" in note


# ----------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(("turns", "branches"), [(2, None), (2, 3), (3, 2)])
def test_trees_are_counted_as_they_are_drawn(turns: int, branches: int | None) -> None:
    """Against the tree itself, node by node."""
    K = 4
    talk = ConversationConfig(turns=turns, user=ScriptConfig(says=("a",)), level="state", branches=branches)
    widths = [K, *[branches or K] * (turns - 1)]
    nodes = [path for depth in range(1, turns + 1) for path in product(*map(range, widths[:depth]))]
    leaves = [path for path in nodes if len(path) == turns]
    states = {path[:-1] for path in nodes}
    assert (talk.leaves(K), talk.drawn(K), talk.rows(K)) == (len(leaves), len(nodes), len(states))
    whole = ConversationConfig(turns=turns, user=ScriptConfig(says=("a",)))
    assert (whole.leaves(K), whole.drawn(K), whole.rows(K)) == (K, K * turns, 1)
    assert talk.tokens(10) is None
    capped = ConversationConfig(turns=turns, user=ScriptConfig(says=("a",)), max_tokens=15)
    assert (capped.tokens(10), capped.tokens(20)) == (15, 20)


@pytest.fixture
def small(tmp_path: Path, tiny_llama: Callable[..., Any], byte_tokenizer: Callable[..., Any]) -> Callable[..., Recipe]:
    """The recipe on a small model with a chat template, and 70 prompts of which 10 are held out."""
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tiny_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer(template=template).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"prompt {i:03d}!"} for i in range(70)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {"MODEL": str(tmp_path / "model"), "PROMPTS": str(tmp_path / "prompts.jsonl"), "OUT": str(tmp_path)}

    def make(*overrides: str) -> Recipe:
        text = SMALL
        for name, place in places.items():
            text = text.replace(name, place)
        return recipe(*overrides, text=text)

    return make


def counts(found: Plan, phase: str) -> dict[str, int]:
    return dict(next(p.counts for p in found.phases if p.phase == phase))


PROMPT_TOKENS = len("[user]prompt 000![assistant]") + 1  # letters are tokens, and so is the end of a turn


def test_the_dry_run_counts_whole_conversations(small: Callable[..., Recipe]) -> None:
    found = plan(small())
    sampled = counts(found, "sample")
    assert sampled == {
        "prompts": 20,
        "responses": 20 * 4,
        "turns": 20 * 4 * 3,
        "prompt_tokens": 20 * PROMPT_TOKENS,
        "response_tokens": 20 * 4 * 3 * 20,
    }
    assert counts(found, "judge")["questions"] == 2 * 20 * 6
    assert counts(found, "train") == {"prompts": 20, "steps": 2 * 5}
    evaluated = counts(found, "evaluate")  # two of each of the current policy and of its only opponent
    assert (evaluated["responses"], evaluated["turns"]) == (10 * 2 * 2, 10 * 2 * 2 * 3)
    assert found.totals["turns"] == 3 * found.totals["responses"]
    assert found.warnings == ()
    assert "turns" in str(found)
    assert "turns" not in plan(small("conversation=null")).totals


def test_the_dry_run_counts_trees(small: Callable[..., Recipe]) -> None:
    found = plan(small("conversation.level=state", "conversation.branches=2", "conversation.max_tokens=41"))
    sampled = counts(found, "sample")
    leaves, nodes = 4 * 2 * 2, 4 + 4 * 2 + 4 * 2 * 2
    assert sampled["responses"] == 20 * leaves
    assert sampled["turns"] == 20 * nodes
    assert sampled["response_tokens"] == 20 * min(nodes * 20, leaves * 41)
    assert counts(found, "judge")["questions"] == 20 * leaves * (leaves - 1)
    rows = 20 * (1 + 4 + 8)
    assert counts(found, "train") == {"prompts": 20, "rows": rows, "steps": 2 * -(-rows // 4)}
    # Evaluations compare conversations that are drawn one by one.
    assert counts(found, "evaluate")["responses"] == 10 * 2 * 2
    assert counts(found, "evaluate")["turns"] == 10 * 2 * 2 * 3
    stored = found.disk["samples and judgements, at most"] - 200 * found.totals["questions"]
    held_out = 10 * 2 * (2 + 1 + 1)  # the first evaluation samples its opponent too
    # A conversation is stored as a whole, also where it shares its beginning with others.
    assert stored == 12 * 41 * (3 * 20 * leaves + held_out)


def test_prompts_and_the_other_side_are_held_against_each_other(small: Callable[..., Recipe], tmp_path: Path) -> None:
    def told(*overrides: str) -> str:
        with pytest.raises(ValueError) as caught:
            plan(small(*overrides))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "70 of 70 prompts are plain text" in told("prompts.chat=false")
    assert plan(small("prompts.chat=false", "conversation.text_template='\nQ: {text}\nA:'")).totals["turns"]
    (known,) = plan(small("conversation.user.says=['Why?']")).warnings
    assert "conversation.turns = 3, but the other side has 1 answer: conversations end after the assistant's" in known
    script = tmp_path / "script.jsonl"
    rows = [{"prompt": f"prompt {i:03d}!", "says": ["a", "b"]} for i in range(69)]
    script.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = "there is no row for the prompt "
    assert wanted in told(f"conversation.user={{kind: script, path: {script}}}")
    missing = f"conversation.user={{kind: table, path: {tmp_path / 'none.json'}}}"
    assert "there is no such file; conversation.user.path" in told(missing)
    assert "there is no module no_such" in told("conversation.user={kind: function, function: 'no_such:f'}")
    assert "there is no such folder" in told(f"conversation.user={{kind: model, path: {tmp_path / 'none'}}}")


def test_a_stop_text_that_the_script_says_itself_is_told(small: Callable[..., Recipe], tmp_path: Path) -> None:
    (known,) = plan(small("conversation.stop=['then']")).warnings
    assert "conversation.stop has 'then', which stands in the script's own text 'And then?': on 70 of 70" in known
    assert "at the earliest after the assistant's answer 2; leave it out of stop" in known
    assert plan(small("conversation.stop=['then']", "conversation.turns=2")).warnings == ()  # that text is never said
    script = tmp_path / "script.jsonl"
    rows = [{"prompt": f"prompt {i:03d}!", "says": ["END" if i < 9 else "a", "b", "c"]} for i in range(70)]
    script.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = small(f"conversation.user={{kind: script, path: {script}}}", "conversation.stop=[never, END, c]")
    (known,) = plan(made).warnings
    assert "has 'END', which stands in the script's own text 'END': on 9 of 70 prompts" in known
    assert "after the assistant's answer 1;" in known


def test_a_length_that_nothing_can_be_trained_within_is_refused() -> None:
    """One end token: of one token there is one response, and of equal responses nothing is learned."""
    limits, prompts = Limits(512, 259), [[0] * 30, [0] * 50]

    def told(length: int, ends: tuple[int, ...] | None, *changes: str) -> str:
        made = recipe(f"training.max_length={length}", *changes)
        try:
            return check_lengths(made, limits, [prompts], [], ends)
        except ValueError as error:
            return str(error)

    nothing = "training.max_length = {} leaves no room for {} to any prompt of iteration 1"
    assert nothing.format(30, "a response") in told(30, None)
    assert nothing.format(31, "responses of 2 tokens, the fewest to learn from,") in told(31, (1,))
    assert nothing.format(49, "responses of 20 tokens, the fewest to learn from,") in told(49, ())
    for ends, length in ((None, 31), ((1,), 32), ((1, 2), 31), ((), 50)):
        assert "2 of 2 prompts are left out" in told(length, ends) or "1 of 2" in told(length, ends)
    assert "leaves no room" not in told(31, (1,), "sampling.max_new_tokens=1")


def test_a_template_that_drops_earlier_turns_is_refused_in_the_dry_run(
    small: Callable[..., Recipe], byte_tokenizer: Callable[..., Any]
) -> None:
    made = small()
    template = "{% set m = messages[-1] %}[{{ m['role'] }}]{{ m['content'] }}</s>"
    byte_tokenizer(template=template).save_pretrained(str(made.model.path))
    with pytest.raises(ValueError, match="chat template"):
        plan(made)


def test_the_first_answer_must_fit_and_later_ones_are_told() -> None:
    made = recipe()
    limits, prompts = Limits(512, 259), [[0] * 30, [0] * 50]
    assert check_lengths(made, limits, [prompts], []) == ""
    with pytest.raises(ValueError, match="max_new_tokens = 20 behind the longest prompt of 50 tokens does not fit"):
        check_lengths(made, Limits(60, 259), [prompts], [])
    told = check_lengths(made, Limits(100, 259), [prompts], [])
    assert told.startswith("the model's positions, 100: conversations end before an answer that might not fit. 1 of 2")
    assert "110 and the tokens of the other side keep all turns" in told
    short = recipe("training.max_length=60")
    told = check_lengths(short, limits, [prompts], [])
    assert "1 of 2 prompts are left out of training" in told  # where the first answer is long
    assert "training.max_length, 60: conversations end before an answer" in told
    assert "2 of 2 prompts leave no room for 3 answers" in told
    assert "conversations" not in check_lengths(recipe("conversation=null"), Limits(100, 259), [prompts], [])


# -------------------------------------------------------------------------------------------------------------- times


def predicted(made: Recipe, size: footprint.Size, mean: float = 100.0) -> dict[str, float]:
    cluster = Cluster(HARDWARE["h200"])
    found = timing.predict(made, size, work(made.rule, 1), [1000], mean, cluster, "")
    return {name: seconds[1] for name, seconds in found.seconds.items()}


def test_times_of_conversations_are_those_of_their_turns(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    size = footprint.measure(ModelSpec(path=str(tmp_path)))
    changes = ["sampling.max_new_tokens=256", "training.max_length=4096"]
    one = predicted(recipe("conversation=null", *changes), size)
    made = recipe(*changes)
    lengths = Lengths((100.0,), (256.0,))
    turns = conversations.turn_lengths(made, lengths)
    between = conversations.reply_tokens(made)
    assert between == 2  # ceil of the mean of 4 and 9 letters over 4
    assert [turn.prompt for turn in turns] == [100, 100 + 256 + between, 100 + 2 * (256 + between)]
    assert conversations.whole_lengths(made, turns).response == 3 * 256 + 2 * between
    assert conversations.longest(made) == 3 * 256 + 2 * between
    three = predicted(made, size)
    assert three["sampling"] > 3 * one["sampling"]
    assert three["training"] > 2 * one["training"]
    # Of three turns only as many as have room are drawn.
    assert len(conversations.turn_lengths(recipe(changes[0], "training.max_length=700"), lengths)) == 2
    tree = recipe(*changes, "conversation.level=state", "conversation.branches=2")
    assert predicted(tree, size)["sampling"] > three["sampling"]
    assert outlook.micro_batch(tree, 100.0) < outlook.micro_batch(made, 100.0)
    assert timing.responses_read(tree) == 2  # SPPO's loss is on the best and the worst
    every = recipe(*changes, "conversation.level=state", "conversation.branches=2", "objective.pairs=all")
    assert timing.responses_read(every) == 4
    assert "answers of" in timing.predict(made, size, work(made.rule, 1), [9], 9.0, Cluster(HARDWARE["h200"]), "").told


def test_a_tree_of_one_turn_is_what_recipes_without_conversations_have() -> None:
    plain = recipe("conversation=null")
    found = conversations.tree(plain)
    assert (found.widths, found.rows, found.behind, found.draws) == ((4,), 1, None, [(1, 4)])
    assert (found.drawn(20), found.stored(20), conversations.longest(plain)) == (80, 80, 20)
    lengths = Lengths((3.0,), (5.0,))
    assert conversations.turn_lengths(plain, lengths) == [lengths]
    assert conversations.whole_lengths(plain, [lengths]) is lengths
