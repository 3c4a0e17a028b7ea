"""Figure: SPAC's suboptimality over the weight of the data λ and the coverage of the best response.

Shapes: L values of λ, C coverages.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nashpo.figures import style

TITLE = "How much pessimism: the weight λ against coverage"
CAPTION = (
    "Mean suboptimality of SPAC's average policy on the rare-arm instance with N pairs, when the behavior policy plays"
    " the best response with probability 1/C. With a small λ (bottom) the critic ignores the data and the policy stays"
    " at the reference; with a large one (top) it trusts single pairs of rare responses, as maximum likelihood does."
    " Dots: the best λ of each coverage. Lines: λ = √(C·N), which the theory scales with, and 2√N, the default. Where"
    " C nears N, the data hardly show the best response and no λ helps. Made by `nashpo figures --only pessimism_map`."
)
NEEDS = ("pessimism/lam", "pessimism/coverage", "pessimism/suboptimality", "pessimism/N")


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """The heat map with the theory's lines.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``pessimism/lam`` (L,), ``pessimism/coverage`` (C,), ``pessimism/suboptimality`` (L, C),
        ``pessimism/N`` ().

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "pessimism_map")
    with style.apply():
        fig = style.figure(6.0)
        ax = fig.add_subplot()
        _map(ax, results)
        style.title(fig, TITLE)
        fig.legend(loc="outside lower center", ncols=3, columnspacing=1.6)
    return fig


def _map(ax: Axes, results: Mapping[str, np.ndarray]) -> None:
    lam, coverage = np.asarray(results["pessimism/lam"]), np.asarray(results["pessimism/coverage"])
    values, N = np.asarray(results["pessimism/suboptimality"]), float(results["pessimism/N"])
    low, high = max(float(values.min()), 1e-4), float(values.max())
    # Cells of equal size: both axes are logarithmic, and a cell's colour is one set of runs, not an area.
    image = ax.imshow(
        np.maximum(values, low), origin="lower", aspect="auto", cmap="cividis", norm=LogNorm(low, max(high, 1.01 * low))
    )
    image.set_zorder(1)
    place = np.arange(len(coverage))
    rows = np.log(lam)
    for height, color, line, label in (
        (np.sqrt(coverage * N), style.VERMILLION, "-", "λ = √(C·N)"),
        (np.full(len(coverage), 2 * np.sqrt(N)), style.BLACK, (0, (5, 3)), "λ = 2√N, the default"),
    ):
        ax.plot(place, np.interp(np.log(height), rows, np.arange(len(lam))), color="white", linewidth=5, zorder=2)
        ax.plot(
            place,
            np.interp(np.log(height), rows, np.arange(len(lam))),
            color=color,
            linestyle=line,
            linewidth=2.4,
            label=label,
            zorder=3,
        )
    ax.plot(
        place,
        np.argmin(values, axis=0),
        linestyle="none",
        marker="o",
        markersize=9,
        color="white",
        markeredgecolor="black",
        markeredgewidth=1.3,
        label="best λ of a column",
        zorder=4,
    )
    ax.set_xticks(place, [f"{c:g}" for c in coverage])
    ax.set_yticks(range(len(lam)), [f"{x:,.2f}".rstrip("0").rstrip(".") for x in lam])
    ax.grid(False)
    ax.set_xlabel("C, coverage of the best response (played with probability 1/C)")
    ax.set_ylabel("λ, weight of the data")
    ax.set_title(f"N = {int(N):,} pairs", fontsize=12)
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= t <= high]
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, ticks=ticks)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"{t:g}" for t in ticks])
    bar.set_label("mean suboptimality, units of reward")
    bar.outline.set_visible(False)
