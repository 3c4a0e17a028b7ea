"""One module per figure, each a function from results to a picture, and the report of `nashpo verify`.

A figure module has ``TITLE``, ``CAPTION``, ``NEEDS`` (keys of the results it reads) and ``draw(results) -> Figure``.
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
    "sweep": "nashpo.figures.sweep",
}
"""Every figure by name, in the order of the report."""


def load(name: str) -> Any:
    """The module of a figure.

    Raises
    ------
    ValueError
        On a name that is no figure.
    """
    if name not in FIGURES:
        raise ValueError(f"there is no figure {name!r}; the figures are {', '.join(FIGURES)}")
    return import_module(FIGURES[name])
