"""Tasks of EleutherAI's lm-eval, as those of the Open LLM Leaderboard, for the policies of an arena.

The package lm-eval is optional and imported when it is asked for. Shapes: none; metrics are as lm-eval prints them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nashpo.llm.loop.phase import Phase, write_json
from nashpo.llm.recipe.overrides import override
from nashpo.llm.recipe.parsing import read

OPTION = "--lm-eval"
RESULTS = "results.json"


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class HarnessOptions:
    """What lm-eval is told besides model and tasks."""

    num_fewshot: int | None = _setting(None, "examples before each question; default the task's own")
    limit: int | float | None = _setting(None, "questions per task, or a share of them; for trying out only")
    batch_size: int | str = _setting("auto", "sequences at a time")
    apply_chat_template: bool = _setting(False, "ask as in a conversation")
    include_path: str | None = _setting(None, "folder with tasks of your own")


@dataclass(frozen=True)
class Harness:
    """Tasks and options of lm-eval."""

    tasks: tuple[str, ...]
    options: HarnessOptions = HarnessOptions()

    @classmethod
    def of(cls, words: Sequence[str]) -> "Harness":
        """From the command line: names of tasks, and options as KEY=VALUE.

        Raises
        ------
        ValueError
            Without a task, or with an unknown option.
        """
        raw: dict[str, Any] = {}
        for word in words:
            if "=" in word:
                override(raw, None, word)
        tasks = tuple(name for word in words if "=" not in word for name in word.split(",") if name)
        if not tasks:
            raise ValueError(f"{OPTION} names no task, as in {OPTION} arc_challenge,hellaswag num_fewshot=10")
        return cls(tasks, read(HarnessOptions, raw, OPTION))

    def check(self) -> None:
        """That lm-eval is there.

        Raises
        ------
        ValueError
            If it is not installed.
        """
        _imported("lm_eval")

    def describe(self) -> dict[str, Any]:
        """What results depend on besides the policy."""
        try:
            installed = version("lm-eval")
        except PackageNotFoundError:
            installed = None
        return {"tasks": list(self.tasks), **asdict(self.options), "lm_eval": installed}


def evaluate(
    folder: Path, key: str, harness: Harness, use: Callable[[], Any], tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Metrics of one policy by task, read back where they were computed before.

    Parameters
    ----------
    folder : path
        Of the phase.
    key : str
        Of policy, tasks and options.
    harness : Harness
    use : callable
        Gives a context manager that lends the policy's model.
    tokenizer

    Raises
    ------
    ValueError
        If lm-eval is not installed.
    """
    phase = Phase(folder, "lm_eval", key)
    if not phase.committed:
        phase.begin(harness=harness.describe())
        write_json(folder / RESULTS, _metrics(_run(harness, use, tokenizer)))
        phase.commit([RESULTS], harness=harness.describe())
    found: dict[str, dict[str, float]] = json.loads((folder / RESULTS).read_bytes())
    return found


def _run(harness: Harness, use: Callable[[], Any], tokenizer: Any) -> Any:
    library, models = _imported("lm_eval"), _imported("lm_eval.models.huggingface")
    options = harness.options
    more: dict[str, Any] = {}
    if options.include_path is not None:
        more["task_manager"] = _imported("lm_eval.tasks").TaskManager(include_path=options.include_path)
    with use() as module:
        model = models.HFLM(pretrained=module, tokenizer=tokenizer, batch_size=options.batch_size)
        return library.simple_evaluate(
            model=model,
            tasks=list(harness.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            log_samples=False,
            **more,
        )


def _metrics(found: Any) -> dict[str, dict[str, float]]:
    """The numbers of each task."""
    return {
        task: {name: float(x) for name, x in metrics.items() if isinstance(x, int | float) and not isinstance(x, bool)}
        for task, metrics in found["results"].items()
    }


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{OPTION} needs the package lm-eval ({error.name} is not installed): pip install 'nashpo[lm-eval]'"
        ) from None
