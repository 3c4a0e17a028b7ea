"""Figure: how much each method's policy plays each response, as a table whose cells are shaded.

Shapes: M methods, n columns (responses, or classes of them).
"""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nashpo.figures import style

TITLE = "What each policy plays where rare responses are bad"
CAPTION = (
    "Mean probability of every response under each method's policy, on the rare-arm instance: 'good' and 'next' are in"
    " almost all pairs, every rare response (all equally bad) in about two. On the right are means over the"
    " replicates: the suboptimality, and the certificate against the good response at confidence 95 %. Greedy maximum"
    " likelihood and Nash policies of the empirical win rates play responses that have happened to win; DPO and IPO do"
    " so at small τ, and stay near the reference at large τ. Made by `nashpo figures --only offline_policies`."
)
NEEDS = ("policies/methods", "policies/arms", "policies/probability", "policies/suboptimality", "policies/certificate")
PALEST = 1e-3
SHADES = (0.001, 0.01, 0.1, 1.0)
_BLACK_TEXT_UP_TO = 0.2
_LEFT, _APART = 1.0, 1.9
"""Of the columns of numbers, in widths of a cell."""


def draw(results: Mapping[str, np.ndarray], title: str = TITLE, response: str = "response") -> Figure:
    """The table, with suboptimality and certificate beside it where they are known.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``policies/methods`` (M,), ``arms`` (n,), ``probability`` (M, n), ``suboptimality`` and
        ``certificate`` (M,), NaN where unknown.
    title : str
    response : str
        What stands below the columns.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "offline_policies")
    methods = [str(name) for name in results["policies/methods"]]
    with style.apply():
        fig = style.figure(2.1 + 0.36 * len(methods))
        ax = fig.add_subplot()
        _cells(ax, np.asarray(results["policies/probability"]), methods, results["policies/arms"])
        ax.set_xlabel(response)
        _beside(ax, results)
        style.title(fig, title)
        shade, norm = colormaps["Blues"], LogNorm(PALEST, 1)
        patches = [Patch(facecolor=shade(norm(x)), edgecolor=style.GREY, label=f"{x:g}") for x in SHADES]
        fig.legend(handles=patches, loc="outside lower center", ncols=len(SHADES), title="probability (logarithmic)")
    return fig


def _cells(ax: Axes, probability: np.ndarray, methods: list[str], arms: np.ndarray) -> None:
    ax.imshow(np.clip(probability, PALEST, 1), aspect="auto", cmap="Blues", norm=LogNorm(PALEST, 1))
    for (row, column), value in np.ndenumerate(probability):
        ax.text(column, row, cell(float(value)), ha="center", va="center", fontsize=11.5,
                color="black" if value < _BLACK_TEXT_UP_TO else "white")  # fmt: skip
    ax.set_yticks(range(len(methods)), methods)
    ax.set_xticks(range(len(arms)), [str(arm) for arm in arms])
    ax.set_ylabel("policy")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_xticks(np.arange(1, len(arms)) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, len(methods)) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)


def cell(value: float) -> str:
    """A probability in four letters at most."""
    return "0" if value == 0 else "≈ 0" if value < 0.0005 else f"{value:.3f}".lstrip("0") if value < 0.9995 else "1"


def _beside(ax: Axes, results: Mapping[str, np.ndarray]) -> None:
    """Columns of numbers to the right of the cells."""
    columns = [
        (heading, np.asarray(results[key], dtype=np.float64))
        for heading, key in (("sub-\noptimality", "policies/suboptimality"), ("certificate", "policies/certificate"))
        if np.isfinite(results[key]).any()
    ]
    n = len(results["policies/arms"])
    for k, (heading, values) in enumerate(columns):
        x = n - 0.5 + _LEFT + _APART * k
        ax.text(x, -0.62, heading, ha="center", va="bottom", fontsize=11.5)
        for row, value in enumerate(values):
            if np.isfinite(value):
                ax.text(x, row, f"{value:.3f}", ha="center", va="center", fontsize=11.5)
    ax.set_xlim(-0.5, n - 0.5 + _APART * len(columns))
