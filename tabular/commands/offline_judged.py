"""``nashpo offline`` on judged responses: its options, and the way from the file to what is printed.

Shapes: as in `nashpo.tabular.commands.offline_judged_study`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.tabular.commands.offline_judged_report import arrays, draw, facts, text
from nashpo.tabular.commands.offline_judged_study import SETTINGS, outcome
from nashpo.tabular.commands.offline_methods import settings_given
from nashpo.tabular.commands.output import bar, json_text, save_arrays, say
from nashpo.tabular.judged import BASELINE, read_judged
from nashpo.tabular.judged_pairs import REWARD_BOX

REPLICATES = 20
PAIRS = 4
OPTIONS = ("hidden", "seed", "replicates", "pairs", "temperature", "baseline")
"""Options that only judged responses have."""
ELSEWHERE = ("reference", "against", "baselines", "ignore")
"""Options that they do not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only judged responses have; all default to None, so that it is known whether they were given."""
    group = parser.add_argument_group("judged responses")
    group.add_argument("--hidden", type=float, metavar="SHARE", help="share of the judge that is hidden (default: 0.5)")
    group.add_argument("--seed", type=int, help="of the first replicate (default: 0)")
    group.add_argument(
        "--replicates",
        type=int,
        metavar="B",
        help=f"replicates with hidden answers; of hidden prompts five times as many (default: {REPLICATES})",
    )
    group.add_argument("--pairs", type=int, metavar="K", help=f"pairs drawn per prompt (default: {PAIRS})")
    group.add_argument(
        "--temperature",
        type=float,
        metavar="C",
        help="rewards are R/2 + logit(p)/C (default: the least C for which all lie in [0, R])",
    )
    group.add_argument("--baseline", metavar="NAME", help=f"whose answers the judge held others against ({BASELINE})")


def refuse_arguments(options: argparse.Namespace) -> None:
    """Refuse options of judged responses where the data are none.

    Raises
    ------
    ValueError
    """
    given = [f"--{name}" for name in OPTIONS if getattr(options, name) is not None]
    if given:
        raise ValueError(f"{given[0]} is for judged responses, which {options.data} is not; leave it out")


def run(options: Any, kind: type[Rule], texts: Mapping[str, str], plot: Path | None, save: Path | None) -> None:
    """Read, split, learn, judge, and print."""
    elsewhere = [f"--{name}" for name in ELSEWHERE if getattr(options, name) is not None]
    if elsewhere:
        raise ValueError(f"{elsewhere[0]} is not for judged responses: their behavior policy is the reference")
    if save is not None and save.suffix.lower() != ".npz":
        raise ValueError(f"--save {save}: of judged responses the regrets are saved, as arrays: give .npz")
    hidden = 0.5 if options.hidden is None else options.hidden
    replicates = REPLICATES if options.replicates is None else options.replicates
    per_prompt = PAIRS if options.pairs is None else options.pairs
    seed = options.seed or 0
    if not 0 < hidden < 1:
        raise ValueError(f"--hidden {hidden:g} must lie strictly between 0 and 1: a part of the judge is hidden")
    for name, value, least in (("replicates", replicates, 2), ("pairs", per_prompt, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"--{name} {value} must be at least {least}")
    settings = settings_given(options, REWARD_BOX)
    judged = read_judged(options.data, baseline=options.baseline or BASELINE)
    largest = float(np.abs(np.asarray(judged.game.reward)).max())
    temperature = check_temperature(options.temperature, settings.R, largest)
    with bar(sum(s.times for s in SETTINGS) * replicates, "learning", "replicate") as progress:
        outcomes = [
            outcome(setting, judged, kind, texts, settings, hidden, per_prompt, seed, replicates, temperature, progress)
            for setting in SETTINGS
        ]
    about = {
        "source": options.data,
        "prompts": len(judged.prompts),
        "models": judged.models,
        "hidden": hidden,
        "seed": seed,
        "replicates": replicates,
        "pairs_per_prompt": per_prompt,
        "R": settings.R,
        "temperature": temperature,
        "bradley_terry": True,
    }
    if save is not None:
        save_arrays({key: value for each in outcomes for key, value in arrays(each).items()}, save)
    if plot is not None:
        draw(outcomes, about, plot)
    say(json_text(facts(outcomes, about)) if options.json else text(outcomes, about))


def check_temperature(temperature: float | None, R: float, largest: float) -> float:
    """The temperature at which all rewards lie in [0, R]; a given one is checked.

    Raises
    ------
    ValueError
        R is below the largest reward, or temperature <= 0.
    """
    least = largest / (R / 2)
    if temperature is None:
        return least
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(f"--temperature {temperature:g} must be a number > 0")
    if temperature < least * (1 - 1e-12):
        raise ValueError(
            f"R = {R:g} is below the largest reward: at temperature {temperature:g} the judge's rewards span"
            f" {2 * largest / temperature:.4g}; raise --R to that, or --temperature to {least:.4g}"
        )
    return temperature
