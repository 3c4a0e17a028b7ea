"""One module per figure, each a function from results to a picture, and the reports of `nashpo verify` and `train`.

A figure module has ``TITLE``, ``CAPTION``, ``NEEDS`` (keys of the results it reads) and ``draw(results) -> Figure``.
One about a run of `nashpo train` has ``missing(run) -> str``, why it cannot be drawn, in place of ``NEEDS``, and its
``draw`` takes the run.
Importing this package loads neither numpy nor matplotlib; `load` imports one figure.
"""

from importlib import import_module
from typing import Any

FIGURES: dict[str, str] = {
    "rates": "nashpo.figures.rates",
    "refuted_bound": "nashpo.figures.refuted_bound",
    "phase_portrait": "nashpo.figures.phase_portrait",
    "step_sizes": "nashpo.figures.step_sizes",
    "comal_map": "nashpo.figures.comal_map",
    "offline_rates": "nashpo.figures.offline_rates",
    "offline_policies": "nashpo.figures.offline_policies",
    "pessimism_map": "nashpo.figures.pessimism_map",
    "offline_certificate": "nashpo.figures.offline_certificate",
    "multiturn": "nashpo.figures.multiturn",
    "two_turns": "nashpo.figures.two_turns",
    "sweep": "nashpo.figures.sweep",
}
"""Every figure by name, in the order of the report."""

TRAINING: dict[str, str] = {
    "training_gap": "nashpo.figures.training_gap",
    "training_win_rates": "nashpo.figures.training_win_rates",
    "training_curves": "nashpo.figures.training_curves",
    "training_kl": "nashpo.figures.training_kl",
    "training_games": "nashpo.figures.training_games",
    "training_lengths": "nashpo.figures.training_lengths",
    "training_judge": "nashpo.figures.training_judge",
    "training_time": "nashpo.figures.training_time",
}
"""Every figure of a run of `nashpo train` by name, in the order of its report."""


def load(name: str) -> Any:
    """The module of a figure.

    Raises
    ------
    ValueError
        On a name that is no figure.
    """
    known = FIGURES | TRAINING
    if name not in known:
        raise ValueError(f"there is no figure {name!r}; the figures are {', '.join(known)}")
    return import_module(known[name])
