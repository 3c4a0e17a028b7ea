"""What ``nashpo offline`` found, for a reader and as JSON: coverage, policies, and every method's certificate.

Shapes: policies (*batch_shape, n), prompts first; coverage constants and certificates are one number each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules import SPAC
from nashpo.core.theorems import spac_actor
from nashpo.tabular.commands.offline_input import Preferences
from nashpo.tabular.commands.offline_methods import AUTO, COVERAGE, Learned, Method, Settings
from nashpo.tabular.commands.output import clean, number, pairs, paragraph, probability, table
from nashpo.tabular.coverage import Coverage, rare_responses
from nashpo.tabular.rule_arguments import described, in_words

MOST_ROWS = 20
MOST_PROMPTS = 8
MOST_RARE = 6
SHORT = 40


@dataclass(frozen=True)
class Comparator:
    """A policy that others are held against, and how well the data cover it."""

    key: str
    label: str
    policy: np.ndarray
    coverage: Coverage


@dataclass(frozen=True)
class Judgement:
    """One method's measures.

    Attributes
    ----------
    method : Method
    certificates : dict comparator's key -> float
        Upper bounds on J(comparator) − J(method).
    truth : float, optional
        Suboptimality, where the instance knows it (its duality gap where it has no reward).
    rare : float
        Probability of responses that are too rare to trust, mean over prompts.
    divergence : float
        KL to the reference in nats, mean over prompts.
    """

    method: Method
    certificates: dict[str, float]
    truth: float | None
    rare: float
    divergence: float


@dataclass(frozen=True)
class Found:
    """Everything that is told of one data set."""

    preferences: Preferences
    settings: Settings
    texts: Mapping[str, str]
    learned: Learned
    comparators: tuple[Comparator, ...]
    judgements: tuple[Judgement, ...]
    reference: np.ndarray


def judged(
    method: Method, preferences: Preferences, certificates: dict[str, float], reference: np.ndarray
) -> Judgement:
    """The measures of a method."""
    data, instance = preferences.data, preferences.instance
    rare = data.over_prompts(np.sum(np.where(rare_responses(data), method.policy, 0.0), axis=-1))
    divergence = kl(log_from_probabilities(method.policy), log_from_probabilities(reference))
    truth = None if instance is None else float(instance.suboptimality(method.policy))
    return Judgement(method, certificates, truth, float(rare), float(data.over_prompts(divergence)))


def facts(found: Found) -> dict[str, Any]:
    """The whole for JSON."""
    p, learned = found.preferences, found.learned
    rare = rare_responses(p.data)
    return {
        "command": "offline",
        "data": p.facts,
        "rule": described(learned.rule),
        "steps": learned.steps,
        "D": learned.D,
        "R": found.settings.R,
        "tau": found.settings.tau,
        "delta": found.settings.delta,
        "critic_gap": learned.critic_gap,
        "coverage": {
            c.key: {
                "single_policy": float(c.coverage.single_policy),
                "second_moment": float(c.coverage.second_moment),
                "chi_square": float(c.coverage.chi_square),
                "all_policy": float(c.coverage.all_policy),
            }
            for c in found.comparators
        },
        "rare": {"threshold": rare_threshold(p), "responses": int(rare.sum())},
        "returned": learned.methods[0].key,
        "methods": {
            j.method.key: {
                "certificates": j.certificates,
                "suboptimality": j.truth,
                "on_rare": j.rare,
                "kl_to_reference": j.divergence,
                "policy": j.method.policy,
            }
            for j in found.judgements
        },
        "comparators": {c.key: c.policy for c in found.comparators},
        "seen": p.data.seen,
        "exists": p.data.exists,
        "responses": [p.label(0, y) for y in range(p.data.n)] if p.prompts == 1 else p.data.names,
    }


def text(found: Found) -> str:
    """The whole for a reader."""
    parts = [found.preferences.source, pairs(data_rows(found)), "", *rule_lines(found), "", policies_text(found), ""]
    return "\n".join([*parts, methods_text(found)])


def rare_threshold(p: Preferences) -> float:
    """Pairs below which `rare_responses` distrusts a response."""
    return float(np.log2(p.data.exists.sum() / 0.05))


def data_rows(found: Found) -> list[tuple[str, str]]:
    """Counts, coverage and rare responses."""
    p = found.preferences
    rows = [("data", p.counts)]
    if p.report is not None and float(p.data.N) > p.report.pairs * (1 + 1e-9):
        rows.append(("weights", "some are above 1, for which the certificate is not proved: scale them into [0, 1]"))
    for c in found.comparators:
        if np.isinf(c.coverage.single_policy):
            said = "infinite: it plays responses that no pair shows"
        else:
            worst, mean = number(c.coverage.single_policy, 3), number(c.coverage.second_moment, 3)
            said = f"C = {worst}" if worst == mean else f"C = {worst} at worst, {mean} on average"
        rows.append((f"coverage of {c.label}", said))
    all_policy = float(found.comparators[0].coverage.all_policy)
    said = "infinite: some responses are in no pair" if np.isinf(all_policy) else f"C = {number(all_policy)}"
    return [*rows, ("coverage of every policy", said), ("too rare to trust", rare_words(p))]


def rare_words(p: Preferences) -> str:
    """How many responses are in too few pairs, and in how many those of a single prompt are."""
    rare = rare_responses(p.data)
    count, every = int(rare.sum()), int(p.data.exists.sum())
    told = f"in fewer than {rare_threshold(p):.3g} pairs"
    if not count:
        return f"none: no response is {told}"
    if p.prompts > 1:
        prompts = int(rare.any(axis=-1).sum())
        return f"{count:,} of {every:,} responses, at {prompts:,} of {p.prompts:,} prompts, are {told}"
    seen = p.data.seen.reshape(-1)
    places = [int(y) for y in np.flatnonzero(rare.reshape(-1))]
    names = [f"{short(p.label(0, y))} (in {number(seen[y])})" for y in places[:MOST_RARE]]
    more = f" and {count - MOST_RARE} more" if count > MOST_RARE else ""
    return f"{count} of {every} responses are {told}: {', '.join(names)}{more}"


def rule_lines(found: Found) -> list[str]:
    """The rule, how its weights were chosen, and the actor's own error."""
    learned = found.learned
    rule, T = learned.rule, learned.steps
    automatic = {"lam": f"lam = √(C N) with C = {COVERAGE:g}", "eta": "eta = √(8D/T)/R"}
    if not isinstance(rule, SPAC):
        automatic["eta"] = "eta is the minimizer of the rule's bound"
    chosen = [told for name, told in automatic.items() if found.texts.get(name) == AUTO]
    steps = f"T = {T:,} steps" if T > 1 else "one step"
    lines = [paragraph(f"{in_words(rule)}; {steps}; D = {number(learned.D)} nats")]
    if chosen:
        lines.append(f"  chosen here: {'; '.join(chosen)}")
    if isinstance(rule, SPAC) and not callable(rule.eta):
        bound = spac_actor(learned.D, rule.eta, rule.R, T)
        lines.append(f"  The actor's own error is at most D/(ηT) + ηR²/8 = {number(bound, 3)}; more --steps lower it.")
    return lines


def short(name: str, most: int = SHORT) -> str:
    """A response or prompt in one line."""
    line = clean(" ".join(name.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def policies_text(found: Found) -> str:
    """Every response of a single prompt; of many prompts a summary and the first ones."""
    if found.preferences.prompts == 1:
        return "\n".join(["The policy", responses_table(found)])
    return prompts_text(found)


def responses_table(found: Found) -> str:
    """What is known of each response and how often it is played."""
    p, learned = found.preferences, found.learned
    data, instance = p.data, p.instance
    flat = (data.n,)
    seen, won = data.seen.reshape(flat), data.wins.sum(axis=-1).reshape(flat)
    policy = learned.policy.reshape(flat)
    columns = {
        "in pairs": [number(x) for x in seen],
        "won": [f"{100 * w / s:.0f} %" if s > 0 else "-" for w, s in zip(won, seen, strict=True)],
        "reference": [probability(x) for x in found.reference.reshape(flat)],
        learned.methods[0].label: [probability(x) for x in policy],
    }
    if instance is not None and instance.reward is not None:
        columns["true reward"] = [number(x) for x in instance.reward.reshape(flat)]
    rows = list(range(data.n)) if data.n <= MOST_ROWS else [int(y) for y in np.argsort(-policy)[:MOST_ROWS]]
    body = [[short(p.label(0, y), 200), *(texts[y] for texts in columns.values())] for y in rows]
    shown = table(["response", *columns], body)
    if data.n <= MOST_ROWS:
        return shown
    return f"{shown}\n  and {data.n - MOST_ROWS} more, with probability {number(1 - policy[rows].sum())} in all"


def prompts_text(found: Found) -> str:
    """How the policy differs from the reference over prompts, and the prompts with the most pairs."""
    p, learned = found.preferences, found.learned
    policy, exists = learned.policy, p.data.exists
    best, before = policy.max(axis=-1), np.where(exists, found.reference, 0.0)
    choice = np.argmax(policy, axis=-1)
    sure = int((best > 0.9).sum())
    seen = p.data.seen
    usual = np.take_along_axis(seen, choice[:, None], axis=-1)[:, 0] >= rare_threshold(p)
    rows = [
        ("largest probability", f"{number(best.mean(), 3)} on average; above 0.9 at {sure:,} of {p.prompts:,} prompts"),
        ("that of the reference", f"{number(before.max(axis=-1).mean(), 3)} on average"),
        ("most probable response", f"in enough pairs to trust at {int(usual.sum()):,} of {p.prompts:,} prompts"),
    ]
    counts = p.data.wins.sum(axis=(-2, -1)) + p.data.ties
    shown = [int(x) for x in np.argsort(-counts, kind="stable")[:MOST_PROMPTS]]
    titles = [p.data.prompts[x] if p.data.prompts is not None else str(x) for x in shown]
    body = [
        [
            short(title),
            short(p.label(x, int(choice[x]))),
            number(counts[x]),
            number(seen[x, choice[x]]),
            f"{best[x]:.3f}",
        ]
        for x, title in zip(shown, titles, strict=True)
    ]
    header = ["prompt", "most probable response", "pairs", "it is in", "probability"]
    more = (
        [f"  and {p.prompts - len(shown):,} prompts more; --save FILE.jsonl has all"] if p.prompts > len(shown) else []
    )
    return "\n".join(
        [
            f"The policy of {learned.methods[0].label}, over {p.prompts:,} prompts",
            pairs(rows),
            "",
            table(header, body, left=2),
            *more,
        ]
    )


def methods_text(found: Found) -> str:
    """Methods beside each other, and what a certificate means."""
    instance = found.preferences.instance
    has_reward = instance is None or instance.reward is not None
    truth = [] if instance is None else ["suboptimality" if has_reward else "duality gap"]
    header = ["policy", *truth, *(f"below {c.label}" for c in found.comparators), "on rare", "KL to ref"]
    returned = found.learned.methods[0].key
    body = []
    for j in found.judgements:
        label = f"{j.method.label} *" if j.method.key == returned else j.method.label
        measured = [] if j.truth is None else [f"{max(j.truth, 0.0):.3f}"]
        certificates = [f"≤ {j.certificates[c.key]:.3f}" for c in found.comparators]
        body.append([label, *measured, *certificates, f"{j.rare:.3f}", f"{max(j.divergence, 0.0):.3f}"])
    delta, R = found.settings.delta, found.settings.R
    said = (
        f"* is what the command returns. '≤' is a certificate: with confidence {100 * (1 - delta):g} % no policy here"
        f" is worse than the comparator by more, all at once, if the labels are Bradley-Terry with rewards in"
        f" [0, {R:g}]. {R:g} says nothing; below 0 the policy is better. 'on rare': probability of responses too rare"
        " to trust."
    )
    if not has_reward:
        said += " These preferences are intransitive, so no reward explains them, and no certificate holds here."
    return "\n".join(["Side by side, in units of reward", table(header, body), "", paragraph(said)])
