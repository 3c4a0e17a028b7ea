"""Figure: duality gap against T in games of several turns, by method, with the bounds that there are.

Shapes: G games, K values of T; slopes are (low, mid, high) of a 95 % interval.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style

TITLE = "Several turns: what is measured, and what is proved"
CAPTION = (
    "Random conversations of three deterministic turns, and of two turns with a stochastic user; median over the games."
    " Left: duality gap after T updates, of the mixture over trajectories (one policy is drawn per episode) for SPPO"
    " and ONPO, of the last policy for MTPO, which settles on the dotted line, the gap of the KL-regularized game's own"
    " equilibrium. Dashed: bounds, each of which holds in every game. ONPO with a step at every state is as fast as"
    " ONPO on whole trajectories here (η = ½), but only the latter has a proof; at η = 4 the former stalls on other"
    " games. Right: MTPO's divergence from the regularized"
    " equilibrium, which is what its bound is about. Made by `nashpo verify`."
)
NEEDS = (
    "multiturn/T",
    "multiturn/sppo_state_gap",
    "multiturn/sppo_state_bound",
    "multiturn/sppo_state_slope",
    "multiturn/onpo_state_gap",
    "multiturn/onpo_state_slope",
    "multiturn/onpo_trajectory_gap",
    "multiturn/onpo_trajectory_bound",
    "multiturn/onpo_trajectory_slope",
    "multiturn/mtpo_gap",
    "multiturn/mtpo_floor",
    "multiturn/mtpo_kl",
    "multiturn/mtpo_kl_bound",
)
LOWEST = 1e-16
"""Nothing is drawn below this: beneath is rounding."""

LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sppo_state": ("SPPO at states, η tuned per T", {"color": style.VERMILLION, "marker": "o", "linestyle": "-"}),
    "onpo_trajectory": ("ONPO on trajectories", {"color": style.BLUE, "marker": "s", "linestyle": "-"}),
    "onpo_state": (
        "ONPO at states",
        {"color": style.ORANGE, "marker": "D", "linestyle": (0, (3, 2)), "markersize": 5, "zorder": 5},
    ),
}
MTPO: dict[str, Any] = {"color": style.GREEN, "marker": "^"}
DASHED: dict[str, Any] = {"linestyle": (0, (6, 3)), "linewidth": 1.5, "zorder": 2}
BOUNDS = {"sppo_state": r"$2D/(\eta T)+H\eta/4$", "onpo_trajectory": r"$(2D/\eta+\eta/2)/T$"}


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Two panels: gaps of all methods, and MTPO's divergence.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``multiturn/T`` (K,), gaps, bounds and divergences (G, K), ``multiturn/mtpo_floor`` (G,), slopes
        (3,).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "multiturn")
    T = np.asarray(results["multiturn/T"])
    with style.apply():
        fig = style.figure(6.4)
        gaps, divergence = fig.subplots(1, 2, width_ratios=(1.45, 1))
        for name in LOOKS:
            _method(gaps, T, name, results)
        gaps.plot(T, _median(results["multiturn/mtpo_gap"]), label="MTPO, last policy", **MTPO)
        floor = float(np.median(results["multiturn/mtpo_floor"]))
        gaps.axhline(floor, color=style.GREEN, linestyle=":", label="gap of the regularized equilibrium")
        gaps.set_ylabel("duality gap")
        divergence.plot(T, _median(results["multiturn/mtpo_kl"]), **MTPO)
        words = r"bound of MTPO: $2HQ^2/(\tau^2(T+1))$"
        divergence.plot(T, _median(results["multiturn/mtpo_kl_bound"]), color=style.GREEN, label=words, **DASHED)
        divergence.set_ylabel(r"MTPO: $\mathrm{KL}_p(\pi^*_\tau\,\Vert\,\pi_{T+1})$ in nats")
        for ax in (gaps, divergence):
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(T[::2], [f"{int(t):,}" for t in T[::2]])
            ax.minorticks_off()
            ax.set_xlabel("T, number of updates")
        style.title(fig, TITLE)
        handles = [*gaps.get_legend_handles_labels()[0], *divergence.get_legend_handles_labels()[0]]
        fig.legend(handles=handles, loc="outside lower left", ncols=1, labelspacing=0.3)
    return fig


def _median(values: np.ndarray) -> np.ndarray:
    return np.maximum(np.median(np.atleast_2d(values), axis=0), LOWEST)


def _method(ax: Axes, T: np.ndarray, name: str, results: Mapping[str, np.ndarray]) -> None:
    words, look = LOOKS[name]
    low, mid, high = (f"{x:.2f}".replace("-", "−") for x in np.asarray(results[f"multiturn/{name}_slope"], dtype=float))
    proof = "" if name in BOUNDS else " — no proof"
    ax.plot(T, _median(results[f"multiturn/{name}_gap"]), label=f"{words}: slope {mid} [{low}, {high}]{proof}", **look)
    if name in BOUNDS:
        bound = _median(results[f"multiturn/{name}_bound"])
        ax.plot(T, bound, color=look["color"], label=f"bound: {BOUNDS[name]}", **DASHED)
