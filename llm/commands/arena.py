"""``nashpo arena``: iterates of runs and other models head to head, their Nash weights, and who exploits whom."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashpo.core.cli import GOOD, Parser
from nashpo.llm.commands.train import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nashpo.llm.arena_results import Results
    from nashpo.llm.engines.config import SamplingConfig
    from nashpo.llm.entrants import Team
    from nashpo.llm.judges.judge import Judge
    from nashpo.llm.loop.conversing import Talk
    from nashpo.llm.prompts import Prompt

MOST_COLUMNS = 10
"""Policies up to which the win matrix fits the terminal."""


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "arena",
        "Every pair of policies head to head on held-out prompts: win rates with intervals, Nash weights, and how\n"
        "exploitable each policy is. A RUN brings its iterates, start and reference, its prompts, judge and engine.\n"
        "What was sampled and judged is kept: the same command goes on where it was stopped.",
        "nashpo arena runs/sppo",
        "nashpo arena runs/sppo runs/onpo@3 --out runs/both",
        "nashpo arena model-a model-b --prompts prompts.jsonl --judge kind=reward_model path=rm --out ab",
        "nashpo arena runs/sppo --lm-eval arc_challenge,hellaswag num_fewshot=10",
    )
    made.add_argument(
        "policies", nargs="+", metavar="RUN|MODEL", help="a run, RUN@N, a folder of weights or a name on the hub"
    )
    settings: dict[str, Any] = {"nargs": "+", "metavar": "KEY=VALUE", "action": "extend", "default": []}
    made.add_argument("--judge", **settings, help="keys of a recipe's judge; default the first run's")
    made.add_argument("--sampling", **settings, help="keys of a recipe's sampling; default the first run's")
    made.add_argument("--model", **settings, help="keys of a recipe's model (dtype, …), for each MODEL")
    made.add_argument(
        "--prompts",
        nargs="+",
        metavar="FILE",
        help="a file of prompts, and keys of a recipe's prompts as KEY=VALUE; default the first run's held-out ones",
    )
    made.add_argument("--K", type=int, default=4, metavar="K", help="responses to each prompt (default: %(default)s)")
    made.add_argument("--seed", type=int, metavar="N", help="of samples and intervals (default: the first run's, or 0)")
    made.add_argument("--out", metavar="DIR", help="folder of the results (default: RUN/arena where one run is given)")
    made.add_argument("--alpaca-eval", metavar="DIR", help="write the responses as AlpacaEval reads them")
    made.add_argument(
        "--lm-eval", nargs="+", metavar="TASK", help="tasks of lm-eval for every policy, and options as KEY=VALUE"
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON")
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def main(argv: list[str]) -> int:
    """Play the arena and print its standings."""
    options = parser().parse_args(argv)
    if options.K < 1:
        raise ValueError(f"--K {options.K}: at least one response to each prompt is needed")
    if options.seed is not None and options.seed < 0:
        raise ValueError(f"--seed {options.seed} must be a whole number >= 0")
    quiet_libraries()
    from nashpo.llm.arena import REPORT, arena
    from nashpo.llm.arena_results import Terms
    from nashpo.llm.entrants import enter
    from nashpo.llm.leaderboard import Harness
    from nashpo.llm.loop.progress import Bars

    harness = None if options.lm_eval is None else Harness.of(options.lm_eval)
    if harness is not None:
        harness.check()
    teams = enter(options.policies, _settings("--model", options.model, {}))
    first = next((team for team in teams if team.recipe is not None), None)
    out = _out(options.out, teams)
    sampling = _sampling(options.sampling, options.K, first)
    own = 0 if first is None or first.recipe is None else first.recipe.seed
    seed = own if options.seed is None else options.seed
    prompts = _prompts(options.prompts, teams, first, seed)
    terms = Terms(sampling, _judge(options.judge, first), seed, harness, _talk(first))
    quiet = options.quiet or options.json or not sys.stderr.isatty()
    alpaca = None if options.alpaca_eval is None else Path(options.alpaca_eval)
    found = arena(teams, prompts, terms, out, Bars(quiet), alpaca)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(text(found))
        print(f"\nreport: {out / REPORT}")
    return GOOD


# ----------------------------------------------------------------------------------------------------- what is given


def _settings(option: str, words: Sequence[str], raw: dict[str, Any]) -> dict[str, Any]:
    """A mapping with KEY=VALUE put into it."""
    from nashpo.llm.recipe.overrides import override

    for word in words:
        if "=" not in word:
            raise ValueError(f"{option} {word}: must be KEY=VALUE (give runs and models before {option})")
        override(raw, None, word)
    return raw


def _out(given: str | None, teams: Sequence[Team]) -> Path:
    if given is not None:
        return Path(given)
    if len(teams) == 1 and teams[0].recipe is not None:
        return Path(teams[0].recipe.output_dir) / "arena"
    raise ValueError("give --out DIR, a folder for the results: they belong to no single run")


def _sampling(words: Sequence[str], K: int, first: Team | None) -> SamplingConfig:
    """The first run's engine with changes; another engine keeps the run's distribution of responses."""
    from dataclasses import fields

    from nashpo.llm.engines.config import SamplingConfig
    from nashpo.llm.recipe.parsing import Tagged

    tagged = Tagged("engine", "nashpo.llm.engines.config:ENGINES", "transformers")
    own = None if first is None or first.recipe is None else first.recipe.sampling
    raw = {} if own is None else tagged.dump(own)
    given = _settings("--sampling", words, {})
    if "K" in given:
        raise ValueError("--sampling K=…: give --K")
    if given.get("engine", raw.get("engine")) != raw.get("engine"):
        common = {f.name for f in fields(SamplingConfig)}
        raw = {key: value for key, value in raw.items() if key in common}
    found: SamplingConfig = tagged.read({**raw, **given, "K": K}, "sampling")
    return found


def _judge(words: Sequence[str], first: Team | None) -> Judge:
    """The first run's judge with changes, or another kind."""
    from nashpo.llm.loop.loading import device
    from nashpo.llm.loop.setup import judge_of
    from nashpo.llm.recipe.parsing import Tagged

    tagged = Tagged("kind", "nashpo.llm.judges.config:JUDGES")
    given = _settings("--judge", words, {})
    recipe = None if first is None else first.recipe
    if given:
        own = None if recipe is None or recipe.judge is None or "kind" in given else tagged.dump(recipe.judge)
        config = tagged.read({**(own or {}), **given}, "judge")
        judge: Judge = config.build(str(device()))
        return judge
    found = None if recipe is None else judge_of(Path(recipe.output_dir), recipe)
    if found is None:
        raise ValueError("no judge: give one as --judge kind=reward_model path=… (kinds as in a recipe)")
    return found


def _talk(first: Team | None) -> Talk | None:
    """The first run's conversations: with its other side, whoever the policies are."""
    from nashpo.llm.loop.conversing import Talk
    from nashpo.llm.loop.loading import device

    recipe = None if first is None else first.recipe
    return None if recipe is None else Talk.of(Path(recipe.output_dir), recipe, str(device()))


def _prompts(words: Sequence[str] | None, teams: Sequence[Team], first: Team | None, seed: int) -> list[list[Prompt]]:
    """The same prompts for every team, as its tokenizer reads them."""
    from nashpo.llm.prompts import Prompt, load_prompts
    from nashpo.llm.recipe.parsing import read
    from nashpo.llm.recipe.schema import DataSpec

    if words is None:
        if first is None:
            raise ValueError("no prompts: give --prompts FILE")
        own = first.heldout()
        return [
            own if team is first else [Prompt.of(p.text, team.encoder.prompt(p.text)) for p in own] for team in teams
        ]
    path, *rest = words
    if "=" in path and not Path(path).exists():
        raise ValueError(f"--prompts {path}: the first word must be a file")
    spec: DataSpec = read(DataSpec, _settings("--prompts", rest, {"path": path}), "--prompts")
    found = [load_prompts(spec, team.encoder, seed=seed) for team in teams]
    return [[*one.training, *one.heldout] for one in found]


# ---------------------------------------------------------------------------------------------------- what is printed


def text(found: Results) -> str:
    """The standings for a reader, no line wider than 100 columns."""
    from nashpo.tabular.commands.output import number, paragraph, table

    names = found["policies"]
    B, K = found["prompts"], found["K"]
    kind = found["judge"].get("judge")
    about = f"{len(names)} policies, {B} prompts, {K} response{'s' if K > 1 else ''} to each"
    rows = []
    for i, name in enumerate(names):
        tokens = found["tokens"][i]
        rows.append(
            [
                f"{i + 1} {name}",
                f"{found['nash'][i]:.4f}",
                _interval(found["nash_interval"][i]),
                f"{found['exploitability'][i]:.4f}",
                _interval(found["exploitability_interval"][i]),
                "-" if (by := found["exploited_by"][i]) is None else str(names.index(by) + 1),
                number(tokens["mean"], 3) if tokens else "-",
            ]
        )
    header = ["policy", "Nash", "95 %", "exploitability", "95 %", "by", "tokens"]
    parts = [f"{about}, judge {kind}" if kind else about, "", table(header, rows)]
    for key, title in (("wins", "Win rate of the row"), ("length_controlled", "Length-controlled")):
        matrix: Any = found.get(key)
        if matrix is None or len(names) > MOST_COLUMNS:
            continue
        lines = [
            [f"{i + 1} {name}", *(_rate(p, i == j) for j, p in enumerate(matrix[i]))] for i, name in enumerate(names)
        ]
        parts += ["", table([f"{title} against", *(str(j + 1) for j in range(len(names)))], lines)]
    if found["lm_eval"]:
        parts += ["", table(*_scores(found["lm_eval"]), left=3)]
    parts += ["", *(paragraph(note, "  ", "  ") for note in found["notes"])]
    words = (
        "Exploitability is the duality gap of a policy by itself, 2 (P - 1/2) for the largest win rate P against it"
        " among these policies. Intervals are 95 % over prompts, from two prompts on."
    )
    return "\n".join([*parts, paragraph(words, "  ", "  ")])


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "-" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _rate(p: float | None, own: bool) -> str:
    return "1/2" if own else "-" if p is None else f"{p:.3f}"


def _scores(scores: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, task, metric, f"{value:.4f}"]
        for name, tasks in scores.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if "stderr" not in metric
    ]
    return ["lm-eval", "task", "metric", "value"], rows
