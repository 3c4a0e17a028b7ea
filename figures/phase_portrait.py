"""Figure: where the last iterate of each rule goes, drawn on the simplex.

Shapes: R rules, S policies of a trajectory, n responses. Responses sit at the corners of a regular n-gon and a policy
at the mean of the corners that it weighs: a picture of the simplex itself for n = 3, a projection of it for n > 3.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from nashpo.figures import style

TITLE = "SPPO's last policy spirals out, the others come in"
CAPTION = (
    "Every policy on the way, from the same start, on rock-paper-scissors: a corner is a policy that plays one"
    " response only, the centre plays all three equally and is the exact equilibrium (star). Lines darken as time"
    " passes, arrows show the direction. SPPO leaves the equilibrium, ONPO and COMAL reach it. INPO, EGPO and Nash-MD"
    " play the game with a KL penalty towards the start and come to its equilibrium (diamond), Nash-MD only to within"
    " O(η). The number is the duality gap of the last policy in the game without penalty. Made by `nashpo figures"
    " --only phase_portrait`."
)
NEEDS = (
    "portrait/rules",
    "portrait/names",
    "portrait/trajectory",
    "portrait/gap",
    "portrait/start",
    "portrait/equilibrium",
    "portrait/target",
)

Floats = NDArray[np.float64]
LARGEST_NAMED = 8
"""With more responses than this the corners are numbered."""


def corners(n: int) -> Floats:
    """The corners of a regular n-gon with the first one on top, (n, 2)."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def place(policies: Floats) -> Floats:
    """Barycentric coordinates (..., n) to points of the plane (..., 2)."""
    return np.asarray(policies, dtype=np.float64) @ corners(np.shape(policies)[-1])


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """One small simplex per rule.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS` (see `nashpo.tabular.experiments.portrait`); ``portrait/eta``, ``tau`` and ``inner`` are used
        where they are there.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "phase_portrait")
    rules = style.rule_styles(np.atleast_1d(results["portrait/rules"]))
    with style.apply():
        columns = min(3, len(rules))
        rows = -(-len(rules) // columns)
        fig = style.figure(1.1 + 2.75 * rows, width=max(style.WIDTH * columns / 3, 4.5))
        axes = fig.subplots(rows, columns, squeeze=False)
        for number, ax in enumerate(axes.flat):
            if number < len(rules):
                _panel(ax, number, rules[number], results)
            else:
                ax.remove()
        default = list(np.atleast_1d(results["portrait/names"])) == ["rock", "paper", "scissors"]
        style.title(fig, TITLE if default else "The way of the last policy")
        fig.legend(handles=_marks(results), loc="outside lower center", ncols=columns, handletextpad=0.3)
    return fig


def _panel(ax: Axes, number: int, look: style.RuleStyle, results: Mapping[str, np.ndarray]) -> None:
    path = place(results["portrait/trajectory"][number])
    _frame(ax, [str(name) for name in results["portrait/names"]])
    ax.add_collection(_fading(path, look.color))
    _arrows(ax, path, look.color)
    target = np.asarray(results["portrait/target"][number])
    if np.all(np.isfinite(target)) and not np.allclose(target, results["portrait/equilibrium"], atol=1e-6):
        ax.plot(*place(target), marker="D", markersize=9, color="white", markeredgecolor="black", markeredgewidth=1.8,
                zorder=6)  # fmt: skip
    ax.plot(*place(results["portrait/start"]), marker="o", markersize=9, color="white", markeredgecolor="black",
            markeredgewidth=1.8, zorder=5)  # fmt: skip
    ax.plot(*place(results["portrait/equilibrium"]), marker="*", markersize=16, color=style.YELLOW,
            markeredgecolor="black", markeredgewidth=1.2, zorder=5)  # fmt: skip
    gap = float(np.asarray(results["portrait/gap"])[number, -1])
    ax.set_title(look.label, loc="center", fontweight="bold", pad=20)
    ax.text(0.5, 1.01, _setting(results, number), transform=ax.transAxes, ha="center", va="bottom", fontsize=11)
    ax.text(0.5, 0.0, f"last gap {gap_text(gap)}", transform=ax.transAxes, ha="center", va="bottom", fontsize=12)


def _setting(results: Mapping[str, np.ndarray], number: int) -> str:
    """η, τ and the inner count of one panel, as far as they are known."""
    shown = []
    for key, symbol in (("eta", "η"), ("tau", "τ"), ("inner", "k")):
        values = results.get(f"portrait/{key}")
        if values is not None and np.isfinite(values[number]):
            shown.append(f"{symbol} = {values[number]:.3g}")
    return ", ".join(shown)


def gap_text(gap: float) -> str:
    """A gap in a few characters: 0.41, 0.002, 3e−5."""
    if gap < 1e-15:
        return "< 1e−15"
    if gap >= 5e-4:
        return f"{gap:.2g}" if gap >= 0.01 else f"{gap:.1g}"
    exponent = int(np.floor(np.log10(gap)))
    return f"{gap / 10.0**exponent:.0f}e−{-exponent}"


def _frame(ax: Axes, names: list[str]) -> None:
    n = len(names)
    points = corners(n)
    closed = np.vstack([points, points[:1]])
    ax.plot(*closed.T, color=style.GREY, linewidth=1.2, zorder=1)
    if n == 3:
        for share in (0.25, 0.5, 0.75):  # lines along which one response has this share
            for i in range(3):
                ends = [share * points[i] + (1 - share) * points[(i + j) % 3] for j in (1, 2)]
                ax.plot(*np.array(ends).T, color="#E4E4E4", linewidth=0.8, zorder=0)
    shown = names if n <= LARGEST_NAMED else [str(i) for i in range(n)]
    for point, name in zip(points, shown, strict=True):
        side = "center" if n == 3 or abs(point[0]) < 0.3 else ("left" if point[0] > 0 else "right")
        level = "bottom" if point[1] > 0.3 else ("top" if point[1] < -0.3 else "center")
        ax.text(1.07 * point[0], 1.07 * point[1], name, ha=side, va=level, fontsize=11, color="#303030")
    ax.set_aspect("equal")
    ax.set_xlim(-1.25, 1.25)
    ax.set_ylim(-0.9 if n == 3 else -1.45, 1.25)
    ax.axis("off")


def _fading(path: Floats, color: str) -> LineCollection:
    """The path as segments from pale to full colour."""
    segments = np.stack([path[:-1], path[1:]], axis=1)
    lengths = np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))
    strength = 0.35 + 0.65 * (lengths / max(lengths[-1], 1e-12))[:, None]
    shades = 1 - strength * (1 - np.array(to_rgb(color)))
    return LineCollection(list(segments), colors=shades, linewidths=1.5, zorder=3, capstyle="round")


def _arrows(ax: Axes, path: Floats, color: str, count: int = 3) -> None:
    """Arrow heads at equal shares of the first stretch of the path, where the direction can still be seen."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    stretch = min(0.9 * lengths[-1], 3.4)
    for share in (np.arange(count) + 0.5) / count:
        here = int(np.searchsorted(lengths, share * stretch))
        if 0 < here < len(path) and np.linalg.norm(path[here] - path[here - 1]) > 1e-6:
            ax.annotate(
                "", xy=tuple(path[here]), xytext=tuple(path[here - 1]), zorder=4,
                arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16},
            )  # fmt: skip


def _marks(results: Mapping[str, np.ndarray]) -> list[Line2D]:
    look: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black"}
    marks = [
        Line2D([], [], marker="*", color=style.YELLOW, markersize=16, label="Nash equilibrium", **look),
        Line2D(
            [], [], marker="o", color="white", markersize=9, markeredgewidth=1.8, label="start (= reference)", **look
        ),
    ]
    targets, nash = np.asarray(results["portrait/target"]), np.asarray(results["portrait/equilibrium"])
    if np.any(np.abs(targets - nash) > 1e-6):
        label = "equilibrium with KL penalty"
        marks.append(Line2D([], [], marker="D", color="white", markersize=9, markeredgewidth=1.8, label=label, **look))
    return marks
