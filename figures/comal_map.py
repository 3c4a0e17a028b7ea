"""Figure: COMAL's last gap over its two knobs, k inner iterations per move of the reference and ητ.

Shapes: k values of the inner count, m values of ητ.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpo.figures import style

TITLE = "Where COMAL converges: inner steps k against ητ"
CAPTION = (
    "Last duality gap of COMAL on its own 3 × 3 game, for k iterations of INPO between two moves of the reference. The"
    " theorem is about exact proximal steps (k → ∞, and ητ small enough for the inner rule). With few inner iterations,"
    " or with ητ so large that the inner rule diverges, the policy leaves the equilibrium (crosses: the gap is above"
    " 0.1). With very many, the same number of updates moves the reference too seldom to arrive (grey at the top). The"
    " line is where the outer map, linearized at the equilibrium π*, stops to contract: |M^k (1 − c) + c| = 1 with M ="
    " 1 − ητ + ηλ, c = τ/(τ − λ), and λ an eigenvalue of (P − ½)(diag π* − π* π*ᵀ). Close to that line it converges too"
    " slowly to arrive within the updates. Made by `nashpo figures --only comal_map`."
)
NEEDS = ("comal/inner", "comal/eta_tau", "comal/gap_last")
LOWEST = -15.0
LARGE = 0.1
"""A last gap above this counts as not converged."""


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """The heat map as a figure of its own.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``comal/inner`` (k,), ``comal/eta_tau`` (m,), ``comal/gap_last`` (k, m); ``comal/multiplier``
        (k, b) of the same k at ``comal/fine_eta_tau`` (b,), ``comal/tau`` and ``comal/steps``
        are used where they are there.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "comal_map")
    with style.apply():
        fig = style.figure(5.6)
        draw_map(fig.add_subplot(), results)
        style.title(fig, TITLE)
    return fig


def draw_map(ax: Axes, results: Mapping[str, np.ndarray]) -> None:
    """The heat map into given axes, with its colour bar and a legend beneath."""
    inner, products = np.asarray(results["comal/inner"]), np.asarray(results["comal/eta_tau"])
    gaps = np.atleast_2d(results["comal/gap_last"])
    fig = ax.figure
    # Cells of equal size: the values are spaced by rounded factors, and a cell's colour is one run, not an area.
    image = ax.imshow(
        np.log10(np.maximum(gaps, 10.0**LOWEST)), origin="lower", aspect="auto", cmap="cividis", vmin=LOWEST, vmax=0
    )
    image.set_zorder(1)
    rows, columns = np.nonzero(gaps > LARGE)
    ax.plot(columns, rows, linestyle="none", marker="x", color="black", markersize=6, markeredgewidth=1.3, zorder=3)
    handles = [Line2D([], [], linestyle="none", marker="x", color="black", markersize=7, label=f"gap > {LARGE:g}")]
    if "comal/multiplier" in results and min(gaps.shape) > 1:
        x = np.interp(np.log(results["comal/fine_eta_tau"]), np.log(products), np.arange(len(products)))
        # Only whole k exist: each row has its own limits, so the line is a staircase.
        growth = np.repeat(np.clip(np.log(results["comal/multiplier"]), -1, 1), 2, axis=0)
        y = np.repeat(np.arange(len(inner)), 2) + np.tile([-0.4999, 0.4999], len(inner))
        for color, width in (("white", 5.0), (style.VERMILLION, 2.6)):
            ax.contour(x, y, growth, levels=[0.0], colors=color, linewidths=width, zorder=2)
        handles.append(Line2D([], [], color=style.VERMILLION, linewidth=2.6, label="linearized outer map: modulus 1"))
    ax.set_yticks(range(len(inner)), [str(int(k)) for k in inner])
    every = max(1, -(-len(products) // 7))
    ax.set_xticks(range(0, len(products), every), [f"{x:.2g}" for x in products[::every]])
    ax.grid(False)
    tau = f"  (τ = {float(results['comal/tau']):g})" if "comal/tau" in results else ""
    ax.set_xlabel(f"ητ, pull to the reference per step{tau}")
    ax.set_ylabel("k, inner iterations per move")
    ticks = range(int(LOWEST), 1, 3)
    bar = fig.colorbar(image, ax=ax, pad=0.02, ticks=ticks)
    bar.ax.set_yticklabels([rf"$10^{{{t}}}$" if t else "1" for t in ticks])
    updates = f"\nafter {int(results['comal/steps']):,} updates" if "comal/steps" in results else ""
    bar.set_label(f"duality gap of the last policy{updates}")
    bar.outline.set_visible(False)
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
