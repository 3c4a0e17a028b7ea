"""The trainer's configuration."""

import dataclasses

import pytest
import transformers

from nashpo.core.rules import DPO, IPO, SPPO
from nashpo.llm.config import SelfPlayConfig, checkpointing


def config(**options: object) -> SelfPlayConfig:
    return SelfPlayConfig(output_dir="unused", use_cpu=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss_type", "rule"), [("sigmoid", DPO(tau=0.2)), ("ipo", IPO(tau=0.2)), ("sppo_hard", SPPO(eta=5.0))]
)
def test_trls_loss_types_are_rules(loss_type: str, rule: object) -> None:
    assert config(loss_type=loss_type, beta=0.2).rule() == rule
    assert config().rule() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "right"}, "truncation = 'right' must be one of 'drop', 'left', 'error'"),
        ({"missing_eos": "add"}, "missing_eos = 'add' must be one of"),
        ({"pairs": "some"}, "pairs = 'some' must be one of None, 'all', 'iid', 'best_worst'"),
        ({"loss_type": "hinge", "beta": 1.0}, "loss_type = 'hinge' must be one of"),
        ({"loss_type": "ipo"}, "loss_type = 'ipo' needs beta"),
        ({"beta": 0.0}, "beta = 0.0 must be > 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing = 0.5 must be in \[0, 0.5\)"),
        ({"max_length": 0}, "max_length = 0 must be at least 1"),
        ({"iteration": -1}, "iteration = -1 must be at least 0"),
    ],
)
def test_bad_fields_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_checkpointing_has_the_installed_name() -> None:
    known = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    arguments = checkpointing(use_reentrant=False)
    assert set(arguments) <= known
    made = config(**arguments)
    assert all(getattr(made, name) == value for name, value in arguments.items())


def test_fields_can_be_parsed_from_a_command_line() -> None:
    command = ["--output_dir", "unused", "--use_cpu", "true", "--pairs", "iid", "--ignored_columns", "id", "source"]
    command += ["--chat_template_kwargs", '{"enable_thinking": false}', "--padding_free", "false"]
    (made,) = transformers.HfArgumentParser(SelfPlayConfig).parse_args_into_dataclasses(command)
    assert (made.pairs, made.ignored_columns, made.padding_free) == ("iid", ["id", "source"], False)
    assert made.chat_template_kwargs == {"enable_thinking": False}
    assert made.remove_unused_columns is False
