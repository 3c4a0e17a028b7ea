"""What ``nashpo offline`` found on judged responses, for a reader, as JSON, as arrays and as a picture.

Shapes: regrets are (methods, replicates).
"""

from pathlib import Path
from typing import Any

import numpy as np

from nashpo.tabular.commands.offline_judged_study import Outcome
from nashpo.tabular.commands.offline_methods import COVERAGE
from nashpo.tabular.commands.output import number, pairs, paragraph, save_figure, table
from nashpo.tabular.rule_arguments import in_words


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over replicates and half the width of its 95 % interval (Student's t)."""
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def facts(outcomes: list[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """The study for JSON; an interval is mean and half-width."""
    return {
        "command": "offline",
        "data": about,
        "settings": {
            each.setting.title: {
                "against": each.setting.against,
                "rule": in_words(each.rule),
                "replicates": int(each.N.size),
                "N": float(each.N.mean()),
                "ties": float(each.ties.mean()),
                "methods": {
                    name: {
                        "regret": interval(each.regret[m]),
                        "minus_rule": interval(each.regret[m] - each.regret[0]),
                        "win_rate_over_baseline": interval(each.win_rate[m]),
                        "on_unseen": interval(each.unseen[m]),
                    }
                    for m, name in enumerate(each.methods)
                },
            }
            for each in outcomes
        },
    }


def arrays(each: Outcome) -> dict[str, np.ndarray]:
    """A setting's measurements for --save."""
    group = each.setting.title.replace(" ", "_")
    return {
        f"{group}/methods": np.array(each.methods),
        f"{group}/regret": each.regret,
        f"{group}/win_rate_over_baseline": each.win_rate,
        f"{group}/on_unseen": each.unseen,
        f"{group}/N": each.N,
    }


def text(outcomes: list[Outcome], about: dict[str, Any]) -> str:
    """The study for a reader."""
    rule = outcomes[0].methods[0].partition(",")[0]
    header = ["policy"]
    for each in outcomes:
        header += [each.setting.title, f"minus {rule}"]
    body = []
    for m, name in enumerate(outcomes[0].methods):
        cells = [name]
        for each in outcomes:
            cells += [plus_minus(each.regret[m]), "" if m == 0 else plus_minus(each.regret[m] - each.regret[0], "+")]
        body.append(cells)
    said = (
        f"± is half of a 95 % interval over replicates. 'minus {rule}' is the regret minus that of the first row,"
        " replicate by replicate: above 0 the first row is better. The weights tau are a grid; which of them is best"
        " only the hidden judge tells."
    )
    verdicts = [paragraph(verdict(each), "  ", "    ") for each in outcomes]
    parts = [about["source"], pairs(protocol(outcomes, about)), "", "Regret by the hidden judge, in units of reward"]
    return "\n".join([*parts, table(header, body), "", paragraph(said), "", *verdicts])


def protocol(outcomes: list[Outcome], about: dict[str, Any]) -> list[tuple[str, str]]:
    """What was hidden, what was learned from, and by which rule."""
    first, second = outcomes
    drawn = [f"{each.N.mean():,.0f} ({100 * each.ties.sum() / each.N.sum():.0f} % ties)" for each in outcomes]
    box = f"R/2 + logit(p)/{number(about['temperature'], 3)} in [0, {about['R']:g}]"
    return [
        ("data", f"{about['prompts']} prompts, answers of {len(about['models'])} models"),
        (
            "rewards",
            f"{box}, where p is the judge's win rate over the baseline answer. Labels are drawn from them: these"
            " data are Bradley-Terry by construction, as SPAC, DPO and MLE assume (pooled over prompts, only nearly).",
        ),
        (
            "hidden",
            f"{100 * about['hidden']:g} % of the judge; {first.N.size} replicates with {first.setting.title},"
            f" {second.N.size} with {second.setting.title}, from seed {about['seed']}",
        ),
        (
            "pairs",
            f"{about['pairs_per_prompt']} a prompt, from a sparse behavior policy over models (1, 1/2, 1/4, ... in"
            f" random order), which is the reference too; {drawn[0]} with {first.setting.title}, {drawn[1]} with"
            f" {second.setting.title}",
        ),
        ("rule", _rule(outcomes)),
        ("hidden prompts", f"which model to play, learned elsewhere: regret against {first.setting.against}"),
        ("hidden answers", f"a policy per prompt from its own pairs: regret against {second.setting.against}"),
    ]


def _rule(outcomes: list[Outcome]) -> str:
    first = outcomes[0].rule
    steps = f"; T = {outcomes[0].steps:,} steps" if outcomes[0].steps > 1 else ""
    weights = [getattr(each.rule, "lam", None) for each in outcomes]
    if weights[0] == weights[1]:
        return in_words(first) + steps
    told = " and ".join(f"{number(w)} ({o.setting.title})" for w, o in zip(weights, outcomes, strict=True))
    words = ", ".join(part for part in in_words(first).split(", ") if not part.startswith("lam = "))
    return f"{words}, lam = √(C N) with C = {COVERAGE:g}: {told}{steps}"


def plus_minus(values: np.ndarray, sign: str = "") -> str:
    """mean ± half of the 95 % interval."""
    mean, half = interval(values)
    return f"{mean:{sign}.3f} ± {half:.3f}"


def verdict(each: Outcome) -> str:
    """Who has the lowest mean regret, and whether the rule's distance from it is more than its interval."""
    means = each.regret.mean(axis=1)
    rule = each.methods[0]
    others = [m for m in range(1, len(means)) if not each.methods[m].startswith(rule.split(",")[0])]
    best = min(others, key=lambda m: means[m])
    mean, half = interval(each.regret[best] - each.regret[0])
    if abs(mean) <= half:
        how = f"no clear difference from {each.methods[best]}, the best of the others"
    elif mean > 0:
        how = f"lower by {mean:.3f} ± {half:.3f} than that of {each.methods[best]}, the best of the others"
    else:
        how = f"higher by {-mean:.3f} ± {half:.3f} than that of {each.methods[best]}, the best here"
    return f"{each.setting.title.capitalize()}: the regret of {rule} is {means[0]:.3f}, {how}."


def draw(outcomes: list[Outcome], about: dict[str, Any], path: Path) -> None:
    """Write the figure of the regrets."""
    from nashpo.figures import judged_regret

    results = {
        f"judged/{k}/{name}": value
        for k, each in enumerate(outcomes)
        for name, value in (("methods", np.array(each.methods)), ("regret", each.regret))
    }
    titles = [each.setting.title for each in outcomes]
    labels = [f"regret against {each.setting.against}" for each in outcomes]
    heading = f"Regret by the hidden judge, {Path(about['source']).name}"
    save_figure(judged_regret.draw(results, titles, labels, heading), path)
