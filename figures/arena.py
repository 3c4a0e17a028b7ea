"""Figures and report of `nashpo arena`: who beats whom, the Nash weights of the policies, and how exploitable each is.

Shapes: M policies; ``wins``, ``low``, ``high`` and ``length_controlled`` are (M, M) win rates of the row against the
column in [0, 1], None or NaN where nothing was judged; ``nash`` and ``exploitability`` are (M,).
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from nashpo.core.store import replace_file
from nashpo.figures import page, style
from nashpo.figures.training_style import plain
from nashpo.llm.described import value_words

NEEDS = ("policies", "wins", "low", "high", "nash", "exploitability")
DETAILS = (
    "format",
    "judged",
    "nash_interval",
    "exploitability_interval",
    "exploited_by",
    "length_controlled_low",
    "length_controlled_high",
    "tokens",
    "finished",
    "weights",
    "lm_eval",
)
"""Parts of the results that are told beside others, or are for machines."""
LINKS = (("wins", "win rates"), ("nash", "Nash weights"), ("controlled", "length-controlled"), ("about", "about"))
DPI = 150
MOST_LETTERS = 22
SHADES = "RdBu"
DARK = 0.33
"""Distance from ½ beyond which a cell is too dark for black text."""
BOUNDS_UP_TO = 7
"""Policies up to which the cells have room for intervals."""
WINS = (
    "How often the row's policy beats the column's, by the judge, over the held-out prompts; in brackets the 95 %"
    " interval over prompts. Blue wins, red loses, and at ½ neither is better."
)
NASH = (
    "Left: the weights of the Nash equilibrium of the game whose players choose one of these policies: a mixture that"
    " no policy here beats. A policy with weight 0 is not needed in it. Right: how exploitable each policy is on its"
    " own, its duality gap 2 (w − ½) where w is the largest win rate against it, 0 where none of the others beats it."
    " Both look only at the policies of this arena: an opponent that is not here may exploit any of them."
)

Array = NDArray[np.float64]
Json = Mapping[str, Any]


def write_arena_report(results: Json, path: Path) -> Path:
    """Write one self-contained HTML file about an arena, aside and renamed.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`, and ``length_controlled`` (M, M) or None; of `DETAILS` what is there is shown beside them. Other
        entries are shown as they are.
    path : path
        Of the file; its folder must exist.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If a part is missing or has another shape.
    OSError
        If the file cannot be written.
    """
    names = check(results)
    best = int(np.argmin(_vector(results, "exploitability")))
    cards = [("policies", f"{len(names)}")]
    sentence = f"Least exploitable: {names[best]} ({_vector(results, 'exploitability')[best]:.3f})."
    wins = _picture("wins", "Win rates", WINS, draw_wins(results))
    nash = _picture("nash", "Nash weights and exploitability", NASH, draw_nash(results))
    parts = [
        page.banner(sentence, "open", cards, "`nashpo arena`"),
        page.section("wins", "Who beats whom", wins + _table(names, results, "wins")),
        page.section("nash", "Nash weights and exploitability", nash + _weights(names, results)),
        page.section("controlled", "Length-controlled", _controlled(names, results)),
        *([page.section("tasks", "Tasks of lm-eval", _scores(results["lm_eval"]))] if results.get("lm_eval") else []),
        page.section("about", "About this arena", _about(results)),
    ]
    path = Path(path)
    replace_file(path, page.to_bytes(page.document("NashPO: the arena", "\n".join(parts), LINKS)))
    return path


def check(results: Json) -> list[str]:
    """Names of the policies, after a look at the shapes.

    Raises
    ------
    ValueError
        Naming the part that is missing or wrong.
    """
    missing = [key for key in NEEDS if results.get(key) is None]
    if missing:
        raise ValueError(f"the results of the arena lack {', '.join(missing)}; run `nashpo arena` again")
    names = [str(name) for name in results["policies"]]
    M = len(names)
    if not M:
        raise ValueError("the results of the arena name no policies; run `nashpo arena` again")
    for key in (*NEEDS[1:4], "length_controlled"):
        if results.get(key) is not None and _matrix(results, key).shape != (M, M):
            raise ValueError(f"{key} of the arena is {_matrix(results, key).shape}, and there are {M} policies")
    for key in NEEDS[4:]:
        if _vector(results, key).shape != (M,) or not np.isfinite(_vector(results, key)).all():
            raise ValueError(f"{key} of the arena is {results[key]!r:.60}, and there are {M} policies")
    return names


def draw_wins(results: Json) -> Figure:
    """The win matrix as shaded cells with intervals.

    Parameters
    ----------
    results : mapping
        As in `write_arena_report`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        As `check`.
    """
    names = [plain(name, MOST_LETTERS) for name in check(results)]
    wins, low, high = (_matrix(results, key) for key in ("wins", "low", "high"))
    with style.apply():
        M = len(names)
        fig = style.figure(2.2 + 0.62 * M, max(style.WIDTH, 2.6 + 1.05 * min(M, BOUNDS_UP_TO)))
        ax = fig.add_subplot()
        shade = colormaps[SHADES].with_extremes(bad=style.LIGHT)
        picture = ax.imshow(wins, cmap=shade, vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(wins):
            text = _cell(float(value), float(low[i, j]), float(high[i, j]), i == j, M)
            ink = "white" if abs(value - 0.5) > DARK else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=11.5, color=ink, linespacing=1.3)
        _grid(ax, names)
        fig.colorbar(picture, ax=ax, label="win rate of the row", shrink=0.9)
        style.title(fig, "Win rates")
    return fig


def draw_nash(results: Json) -> Figure:
    """Bars of Nash weights and of exploitability, a row per policy.

    Parameters
    ----------
    results : mapping
        As in `write_arena_report`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        As `check`.
    """
    names = [plain(name, MOST_LETTERS) for name in check(results)]
    with style.apply():
        fig = style.figure(1.7 + 0.42 * len(names))
        axes = fig.subplots(1, 2, sharey=True)
        bars = (("nash", "Nash weight", style.BLUE), ("exploitability", "exploitability", style.VERMILLION))
        for ax, (key, label, color) in zip(axes, bars):
            values = _vector(results, key)
            ax.barh(range(len(names)), values, color=color, height=0.6)
            top = max(float(values.max()), 0.1 if key == "exploitability" else 1.0)
            for row, value in enumerate(values):
                ax.text(max(value, 0) + 0.02 * top, row, f"{value:.3f}", va="center", fontsize=11.5)
            ax.set_xlim(0, 1.25 * top)
            ax.xaxis.set_major_locator(FixedLocator([t for t in ax.get_xticks() if -1e-9 <= t <= 1 + 1e-9]))
            ax.set_xlabel(label)
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        axes[0].set_ylabel("policy")
        style.title(fig, "Nash weights and exploitability")
    return fig


def _cell(value: float, low: float, high: float, own: bool, M: int) -> str:
    if own or not np.isfinite(value):
        return "½" if own else "–"
    text = f"{value:.2f}".lstrip("0") if value < 1 else f"{value:.2f}"
    if M > BOUNDS_UP_TO or not (np.isfinite(low) and np.isfinite(high)):
        return text
    return f"{text}\n[{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _grid(ax: Axes, names: list[str]) -> None:
    M = len(names)
    ax.set_yticks(range(M), names)
    ax.set_xticks(range(M), names, rotation=30 if M > 3 else 0, ha="right" if M > 3 else "center")
    ax.set_xlabel("opponent")
    ax.set_ylabel("policy")
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    for ticks in (ax.set_xticks, ax.set_yticks):
        ticks(np.arange(1, M) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)


def _matrix(results: Json, key: str) -> Array:
    """(M, M) with NaN for None; its shape tells where rows have other lengths."""
    try:
        return np.atleast_2d(np.array(results[key], dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"{key} of the arena is no matrix of numbers; run `nashpo arena` again") from None


def _vector(results: Json, key: str) -> Array:
    try:
        return np.array(results[key], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{key} of the arena is no list of numbers; run `nashpo arena` again") from None


def _picture(name: str, title: str, caption: str, fig: Figure) -> str:
    return page.figure(name, title, caption, base64.b64encode(style.png(fig, DPI)).decode())


def _table(names: list[str], results: Json, key: str) -> str:
    """A matrix of win rates as a table, with intervals where they belong to it."""
    wins, low, high = (_matrix(results, name) for name in (key, "low", "high"))
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j in range(len(names)):
            known = np.isfinite(wins[i, j]) and i != j
            cell = f"{wins[i, j]:.3f}" if known else "–"
            if known and key == "wins" and np.isfinite(low[i, j]) and np.isfinite(high[i, j]):
                cell += f" [{low[i, j]:.3f}, {high[i, j]:.3f}]"
            cells.append(cell)
        rows.append([escape(name), *cells])
    return page.table(("beats …", *names), rows, "numbers")


def _weights(names: list[str], results: Json) -> str:
    """A row per policy: Nash weight, exploitability, and what else the results have of it."""
    columns = [("policy", [escape(name) for name in names])]
    for key, title in (("nash", "Nash weight"), ("exploitability", "exploitability")):
        columns.append((title, [f"{value:.4f}" for value in _vector(results, key)]))
        if results.get(f"{key}_interval"):
            columns.append(("95 %", [_bounds(pair) for pair in results[f"{key}_interval"]]))
    if results.get("exploited_by"):
        columns.append(("exploited by", [escape(str(name or "nobody here")) for name in results["exploited_by"]]))
    if results.get("tokens"):
        columns.append(("tokens", [f"{found['mean']:.1f}" if found else "–" for found in results["tokens"]]))
    if results.get("finished"):
        columns.append(("finished", [f"{share:.0%}" for share in results["finished"]]))
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return page.table([title for title, _ in columns], rows, "numbers")


def _scores(scores: Json) -> str:
    """Metrics of lm-eval, a row per policy and metric."""
    rows = [
        [escape(str(name)), escape(str(task)), escape(str(metric)), f"{value:.4f}"]
        for name, tasks in scores.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    ]
    return page.table(("policy", "task", "metric", "value"), rows, "numbers")


def _bounds(pair: Sequence[float | None]) -> str:
    low, high = pair
    return "–" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _controlled(names: list[str], results: Json) -> str:
    if results.get("length_controlled") is None:
        return "<p>Length-controlled win rates were not computed.</p>"
    words = (
        "Win rates with the judge's taste for length taken out by a logistic regression on the difference of lengths. A"
        " win rate that is much nearer to ½ here than above owes something to length."
    )
    return f"<p>{escape(words)}</p>" + _table(names, results, "length_controlled")


def _about(results: Json) -> str:
    """Everything else in the results, in a table."""
    others = {key: value for key, value in results.items() if key not in (*NEEDS, *DETAILS, "length_controlled")}
    others = {key: value for key, value in others.items() if value is not None and value != []}
    rows = [[escape(str(key).replace("_", " ")), escape(value_words(value))] for key, value in others.items()]
    return page.table(("", ""), rows, "plain lead") if rows else "<p>Nothing else was recorded.</p>"
