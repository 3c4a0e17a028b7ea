"""``nashpo train``: self-play of a language model from one recipe; the same command goes on where a run stopped."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashpo.core.cli import GOOD, INTERRUPTED, Parser

if TYPE_CHECKING:
    from nashpo.llm.recipe.schema import Recipe


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "train",
        "Self-play of a language model: sample, judge, train and evaluate, iteration after iteration. A run that was\n"
        "stopped, by whatever, goes on when the same command is given again.",
        "nashpo train tiny",
        "nashpo train recipe.yaml rule.name=sppo rule.eta=1000 output_dir=runs/sppo",
        "nashpo train sppo-mistral-7b --dry-run model.path=/models/mistral prompts.path=prompts.jsonl",
        "nashpo train recipe.yaml --from runs/sppo@2 output_dir=runs/onpo rule.name=onpo",
    )
    made.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a packaged recipe")
    made.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of the recipe, as rule.eta=10")
    made.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")
    made.add_argument("--hardware", metavar="GPU", help="with --dry-run: what times are for, as h200; default this GPU")
    made.add_argument("--from", dest="origin", metavar="RUN@N", help="begin a new run from iterate N of another run")
    made.add_argument("--list", action="store_true", help="list the packaged recipes")
    made.add_argument("--show", action="store_true", help="print the recipe with its changes, and stop")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def main(argv: list[str]) -> int:
    """Run a recipe."""
    # Changes may stand anywhere, between options too.
    changes = [word for word in argv if "=" in word and not word.startswith("-")]
    options = parser().parse_args([word for word in argv if word not in changes])
    if options.list:
        return _list(options.json)
    if options.recipe is None:
        raise ValueError("no recipe: give a YAML file or a packaged name (nashpo train --list shows them)")
    quiet_libraries()
    from nashpo.llm.recipe.schema import load_recipe

    changes += options.changes
    if options.origin is not None:
        changes.append(f"start_from={json.dumps(str(_iterate(options.origin)))}")
    recipe = load_recipe(options.recipe, changes)
    if options.show:
        return _show(recipe, options.json)
    if options.dry_run:
        from nashpo.llm.recipe.plan import plan

        found = plan(recipe, options.hardware)
        if _tells():
            print(json.dumps(found.to_json(), indent=1) if options.json else found)
        return GOOD
    from nashpo.llm.loop.machine import train

    quiet = options.quiet or options.json or not sys.stderr.isatty()
    stream = sys.stderr if options.json else sys.stdout
    try:
        outcome = train(recipe, quiet, lambda text: print(text, file=stream, flush=True))
    except KeyboardInterrupt:
        print("nashpo: stopped; what was finished is kept: run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    if not _tells():
        return GOOD
    told = {
        "run": str(outcome.run),
        "iterations": outcome.iterations,
        "new_iterations": outcome.new,
        "report": str(outcome.report),
    }
    if options.json:
        print(json.dumps(told, indent=1))
    elif outcome.new:
        print(f"report: {outcome.report}")
    else:
        print(f"{outcome.run} is finished ({outcome.iterations} iterations); report: {outcome.report}")
    return GOOD


def _tells() -> bool:
    """Whether this is the process that prints, of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def _iterate(origin: str) -> Path:
    """The folder of ``RUN@N``.

    Raises
    ------
    ValueError
        If there is none.
    """
    run, at, number = origin.rpartition("@")
    if not at or not number.isdigit() or not run:
        raise ValueError(f"--from {origin} must be RUN@N, as runs/sppo@2 for what iteration 2 wrote (0: the start)")
    folder = Path(run) / ("start" if int(number) == 0 else f"iterations/{int(number):03d}/model")
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        there = sorted(
            int(p.parent.name) for p in Path(run).glob("iterations/*/model") if (p / "manifest.json").exists()
        )
        raise ValueError(f"--from {origin}: there are no weights at {folder}; {run} has iterates {there or 'none'}")
    return folder.resolve()


def _list(as_json: bool) -> int:
    from nashpo.llm.recipe.library import about, names

    found = {name: about(name) for name in names()}
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        width = max(len(name) for name in found)
        for name, text in found.items():
            first, *rest = textwrap.wrap(text, 97 - width)
            print(f"{name:<{width}}  {first}", *(" " * (width + 2) + line for line in rest), sep="\n")
    return GOOD


def _show(recipe: Recipe, as_json: bool) -> int:
    shown: dict[str, Any] = recipe.to_dict()
    if as_json:
        print(json.dumps(shown, indent=1))
    else:
        from nashpo.llm.recipe.yaml_text import to_yaml

        print(to_yaml(shown), end="")
    return GOOD


def quiet_libraries() -> None:
    """Warnings and bars of libraries would hide the run's own; NASHPO_VERBOSE=1 shows them."""
    if os.environ.get("NASHPO_VERBOSE"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
