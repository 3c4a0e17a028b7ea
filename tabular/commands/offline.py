"""``nashpo offline``: learn from a fixed set of preference pairs, and certify what was learned.

Shapes: policies (*batch_shape, n), prompts first.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.cli import GOOD, Parser
from nashpo.core.store import replace_file
from nashpo.tabular.baselines import mle_greedy
from nashpo.tabular.certificate import certificate
from nashpo.tabular.commands import offline_judged
from nashpo.tabular.commands.inputs import checked_steps
from nashpo.tabular.commands.offline_input import Preferences, is_judged_file, load_data_policy, load_preferences
from nashpo.tabular.commands.offline_methods import (
    AUTO,
    COVERAGE,
    DEFAULT_TAU,
    LABELS,
    RULES_ON_DATA,
    Method,
    baseline_names,
    baselines,
    learn,
    rule_kind,
    rule_texts,
    settings_given,
)
from nashpo.tabular.commands.offline_report import MOST_RARE, Comparator, Found, facts, judged, short, text
from nashpo.tabular.commands.output import (
    FIGURE_KINDS,
    bar,
    json_text,
    note,
    save_arrays,
    save_figure,
    say,
    working,
    writable,
)
from nashpo.tabular.coverage import empirical_coverage
from nashpo.tabular.data_policies import reference_on
from nashpo.tabular.instances import INSTANCES
from nashpo.tabular.play import DEFAULT_STEPS
from nashpo.tabular.reward_model import check_reward
from nashpo.tabular.rule_arguments import HELP, SCHEDULE, all_hyperparameters, option

SAVED_KINDS = (".npz", ".jsonl")
BY_PAIRS = "responses, by the number of pairs that they are in"


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "offline",
        "Learn a policy from preference pairs: what they cover, a certificate, and baselines beside it.",
        "nashpo offline rare-arms:N=1600,seed=0",
        "nashpo offline pairs.jsonl.gz --R 3 --plot offline.png --save policy.jsonl",
        "nashpo offline judged_responses.jsonl.gz      (hides a part of the judge, reports regret by it)",
    )
    made.add_argument(
        "data",
        metavar="DATA",
        help="preference pairs in a file (.jsonl, .jsonl.gz, .parquet: prompt, chosen, rejected), judged responses"
        " (.jsonl, .jsonl.gz, told by content), or an instance whose truth is known, such as rare-arms:N=1600,seed=0"
        f" ({', '.join(name.replace('_', '-') for name in INSTANCES)})",
    )
    made.add_argument("--ignore", metavar="NAMES", help="columns to read past, names between commas")
    rule = made.add_argument_group("rule")
    rule.add_argument(
        "--rule", default="spac", metavar="NAME", help=f"one of {', '.join(RULES_ON_DATA)} (default: %(default)s)"
    )
    rule.add_argument(
        "--lam", metavar="VALUE", help=f"weight of the data, >= 0, or {AUTO}: √(C N), C = {COVERAGE:g} (the default)"
    )
    rule.add_argument(
        "--eta",
        metavar="VALUE",
        help=f"step size: a number, {AUTO} (the default: √(8D/T)/R for spac, else the rule's own), or {SCHEDULE}",
    )
    rule.add_argument("--R", metavar="VALUE", help="largest reward, > 0 (default: 3; an instance's own; 6 when judged)")
    rule.add_argument(
        "--tau",
        metavar="VALUE",
        help=f"KL weight of DPO, IPO, χPO and of rules that have one (default: {DEFAULT_TAU:g})",
    )
    for name in all_hyperparameters():
        if name not in ("lam", "eta", "R", "tau"):
            rule.add_argument(option(name), dest=name, metavar="VALUE", help=HELP.get(name, "hyperparameter"))
    rule.add_argument("--steps", type=int, metavar="T", help=f"number of updates (default: {DEFAULT_STEPS})")
    rule.add_argument("--reference", metavar="FILE", help="reference policy (default: uniform; an instance's own)")
    held = made.add_argument_group("what it is held against")
    held.add_argument("--against", metavar="FILE", help="comparator of the certificate (default: greedy MLE)")
    held.add_argument("--delta", type=float, default=0.05, help="confidence is 1 - delta (default: %(default)s)")
    held.add_argument(
        "--baselines", metavar="NAMES", help=f"names between commas, all (default) or none: {', '.join(LABELS)}, dpo"
    )
    offline_judged.add_arguments(made)
    out = made.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON")
    out.add_argument("--plot", metavar="FILE", help="draw the policies, or regrets when judged (.png, .svg, .pdf)")
    out.add_argument(
        "--save", metavar="FILE", help="save the policies as arrays (.npz), or the policy per prompt as lines (.jsonl)"
    )
    return made


def main(argv: list[str]) -> int:
    """Learn from data and print what is known of the policy."""
    options = parser().parse_args(argv)
    plot = None if options.plot is None else writable(options.plot, FIGURE_KINDS)
    save = None if options.save is None else writable(options.save, SAVED_KINDS)
    kind = rule_kind(options.rule)
    texts = rule_texts(options, kind)
    checked_steps(options.steps)
    settings_given(options)
    run = offline_judged.run if is_judged_file(options.data) else _run
    run(options, kind, texts, plot, save)
    for path in filter(None, (plot, save)):
        note(f"wrote {path}")
    return GOOD


def _run(options: Any, kind: Any, texts: dict[str, str], plot: Path | None, save: Path | None) -> None:
    """Preference pairs or an instance."""
    offline_judged.refuse_arguments(options)
    names = baseline_names(options.baselines)
    ignore = tuple(filter(None, (part.strip() for part in (options.ignore or "").split(","))))
    with working("reading"):
        preferences = load_preferences(options.data, ignore)
    found = found_from(options, preferences, kind, texts, names)
    if save is not None:
        _save(found, save)
    if plot is not None:
        _draw(found, plot)
    say(json_text(facts(found)) if options.json else text(found))


def found_from(
    options: Any, preferences: Preferences, kind: Any, texts: dict[str, str], names: tuple[str, ...]
) -> Found:
    """Learn, and hold every method against the comparators."""
    data, instance = preferences.data, preferences.instance
    settings = settings_given(options) if instance is None else settings_given(options, instance.R)
    if instance is not None and instance.reward is not None:
        check_reward(instance.reward, settings.R)
    given = load_data_policy(options.reference, preferences, "--reference")
    if given is not None:
        _check_reference(given, preferences, options.reference)
    reference = instance.reference if given is None and instance is not None else given
    against = load_data_policy(options.against, preferences, "--against")
    settings = replace(settings, reference=reference)
    played = np.exp(reference_on(data, reference))
    with working("learning"):
        learned = learn(kind, texts, data, settings, DEFAULT_STEPS)
    best = mle_greedy(data, settings.R)
    policies = {"best": ("best (true)", instance.comparator)} if instance is not None else {}
    policies |= {"against": ("given u", against)} if against is not None else {}
    policies = policies or {"mle": ("MLE best", best)}
    policies["reference"] = ("reference", played)
    comparators = tuple(
        Comparator(key, label, np.broadcast_to(policy, played.shape), empirical_coverage(data, policy))
        for key, (label, policy) in policies.items()
    )
    methods = [*learned.methods]
    with working("computing baselines"):
        methods += baselines(names, data, settings)
    methods.append(Method("reference", "reference", played))
    judgements = []
    with bar(len(methods) * len(comparators), "certificates", "certificate") as progress:
        for method in methods:
            bounds = {}
            for u in comparators:
                bounds[u.key] = float(certificate(data, u.policy, method.policy, settings.R, settings.delta).bound)
                progress.update()
            judgements.append(judged(method, preferences, bounds, played))
    return Found(preferences, settings, texts, learned, comparators, tuple(judgements), played)


def _check_reference(reference: np.ndarray, preferences: Preferences, path: str) -> None:
    """Refuse a reference that never plays a response of an informative pair.

    Raises
    ------
    ValueError
    """
    n = preferences.data.n
    lost = np.argwhere(((preferences.data.seen > 0) & (reference == 0)).reshape(-1, n))
    if len(lost):
        prompt, response = (int(k) for k in lost[0])
        place = f" of prompt {prompt}" if preferences.prompts > 1 else ""
        raise ValueError(
            f"--reference {path}: response {short(preferences.label(prompt, response))!r}{place} is in pairs and has"
            " probability 0: mix in a little of the uniform policy"
        )


def _save(found: Found, path: Path) -> None:
    """Policies as arrays, or the returned one as a line per prompt, as ``--against`` and ``--reference`` read it."""
    if path.suffix.lower() == ".npz":
        arrays = {"policy": found.learned.policy, "reference": found.reference}
        arrays |= {f"policies/{j.method.key}": j.method.policy for j in found.judgements}
        for c in found.comparators:
            arrays[f"certificates/{c.key}"] = np.array([j.certificates[c.key] for j in found.judgements])
        save_arrays(arrays | {"methods": np.array([j.method.key for j in found.judgements])}, path)
        return
    p = found.preferences
    exists = p.data.exists.reshape(-1, p.data.n)
    policy = found.learned.policy.reshape(-1, p.data.n)
    lines = []
    for x in range(p.prompts):
        prompt = str(x) if p.data.prompts is None else p.data.prompts[x]
        responses = {p.label(x, int(y)): float(policy[x, y]) for y in np.flatnonzero(exists[x])}
        lines.append(json.dumps({"prompt": prompt, "policy": responses}, ensure_ascii=False) + "\n")
    replace_file(path, "".join(lines).encode())


def _draw(found: Found, path: Path) -> None:
    """Write the figure: what every method plays, with its certificate."""
    from nashpo.figures import offline_policies

    labels, member = classes_of(found)
    data = found.preferences.data
    shares = [data.over_prompts((member * j.method.policy).sum(axis=-1)) for j in found.judgements]
    first = found.comparators[0]
    truths = [np.nan if j.truth is None else j.truth for j in found.judgements]
    results = {
        "policies/methods": np.array([j.method.label for j in found.judgements]),
        "policies/arms": np.array(labels),
        "policies/probability": np.array(shares),
        "policies/suboptimality": np.array(truths),
        "policies/certificate": np.array([j.certificates[first.key] for j in found.judgements]),
    }
    title = f"{Path(found.preferences.source).name}: what each policy plays"
    what = "response" if len(labels) == data.n and found.preferences.prompts == 1 else BY_PAIRS
    save_figure(offline_policies.draw(results, title, f"{what}\n(certificates are against: {first.label})"), path)


def classes_of(found: Found, edges: Sequence[float] = (1, 3, 10, 100)) -> tuple[list[str], np.ndarray]:
    """Columns for a picture of policies: the responses of a single prompt, or classes by how many pairs they are in.

    Returns
    -------
    labels : list of str
    member : (columns, *batch_shape, n)
        True where a response belongs to a column.
    """
    p = found.preferences
    exists, seen = p.data.exists, p.data.seen
    if p.prompts == 1 and p.data.n <= MOST_RARE + 2:
        labels = [short(p.label(0, y), 14) for y in range(p.data.n)]
        repeated = Counter(labels)
        labels = [f"{name} ({y})" if repeated[name] > 1 else name for y, name in enumerate(labels)]
        return labels, np.eye(p.data.n, dtype=bool).reshape(p.data.n, *exists.shape)
    labels = ["0", *(f"{a:g} to {b - 1:g}" for a, b in zip(edges, edges[1:])), f"{edges[-1]:g} +"]
    kind = np.digitize(np.ceil(seen), edges)
    return labels, np.array([exists & (kind == k) for k in range(len(labels))])
