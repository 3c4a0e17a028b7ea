"""``--K 5 --labels hard --replicates 20``: feedback from samples for ``nashpo play``, and what is fitted to it.

Shapes: features (n, d), a row per response.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.cli import suggestion
from nashpo.tabular.csv_table import parse_csv
from nashpo.tabular.noise import AdversarialFlips, Noise, RandomFlips
from nashpo.tabular.objectives import LOSSES, NORMALIZERS
from nashpo.tabular.projection import LogLinear, Softmax
from nashpo.tabular.raw_files import load_arrays, named, read_text, reader
from nashpo.tabular.sampled import ESTIMATES, LABELS, PAIRS, Sampled

NOISES: dict[str, type[RandomFlips | AdversarialFlips]] = {"random": RandomFlips, "adversarial": AdversarialFlips}
SAMPLING = (
    "pairs",
    "labels",
    "estimate",
    "noise",
    "replicates",
    "batch",
    "seed",
    "loss",
    "normalizer",
    "features",
    "ridge",
)
"""Options that mean something only together with ``--K``."""


def add_feedback_arguments(parser: argparse.ArgumentParser) -> None:
    """``--K``, which asks for sampled feedback, and how it is drawn, judged and fitted."""
    group = parser.add_argument_group("sampled feedback", "instead of the exact step; --K asks for it")
    group.add_argument("--K", type=int, metavar="N", help="responses drawn per context and iteration, at least 2")
    group.add_argument("--pairs", choices=list(PAIRS), help="which of them enter the loss (default: all)")
    group.add_argument(
        "--labels", choices=list(LABELS), help="the judge tells its win rate or a winner (default: soft)"
    )
    group.add_argument("--estimate", choices=list(ESTIMATES), help="of a win rate from K (default: self, as in SPPO)")
    group.add_argument("--noise", metavar="KIND:RATE", help="flipped labels: random:0.1 or adversarial:0.1")
    group.add_argument("--replicates", type=int, metavar="N", help="independent runs (default: 1)")
    group.add_argument("--batch", type=int, metavar="N", help="response sets per context and iteration (default: 1)")
    group.add_argument("--seed", type=int, metavar="N", help="fixes all draws (default: 0)")
    group.add_argument("--loss", choices=list(LOSSES), help="what is minimized (default: what suits the rule)")
    group.add_argument("--normalizer", choices=list(NORMALIZERS), help="of the pointwise loss (default: half)")
    group.add_argument("--features", metavar="FILE", help="fit log-linear policies: a row per response (.npy, .csv)")
    group.add_argument("--ridge", type=float, metavar="X", help="ridge of log-linear policies (default: 0)")


def feedback_from(options: argparse.Namespace) -> tuple[Sampled | None, Softmax | LogLinear | None]:
    """Feedback and projection, both None for exact steps; the projection alone where the rule's default will do.

    Raises
    ------
    ValueError
        A sampling option without ``--K``, a ridge without features, or values that `Sampled`, `Softmax` or `LogLinear`
        refuse.
    """
    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    if options.K is None:
        if given:
            raise ValueError(f"--{next(iter(given))} is for sampled feedback: give --K, the responses per set, too")
        return None, None
    fitted = {name: given.pop(name) for name in ("loss", "normalizer", "ridge") if name in given}
    features = given.pop("features", None)
    if "noise" in given:
        given["noise"] = noise_from(given["noise"])
    feedback = Sampled(K=options.K, **given)
    if features is not None:
        return feedback, LogLinear(read_features(features), **fitted)
    if "ridge" in fitted:
        raise ValueError("--ridge is for log-linear policies: give --features too")
    return feedback, Softmax(**fitted) if fitted else None


def noise_from(text: str) -> Noise:
    """``random:RATE`` or ``adversarial:RATE``.

    Raises
    ------
    ValueError
    """
    kind, _, rate = text.partition(":")
    if kind not in NOISES:
        raise ValueError(f"--noise {text}: {suggestion(kind, NOISES)}; write for example random:0.1")
    try:
        return NOISES[kind](float(rate))
    except ValueError as error:
        raise ValueError(f"--noise {text}: {error}; write for example {kind}:0.1") from None


def read_features(path: str) -> np.ndarray:
    """A table of features, (n, d), from .npy or .csv.

    Raises
    ------
    ValueError
    """
    with named(path):
        return np.asarray(reader(Path(path), {".npy": _numpy, ".csv": _csv})(Path(path)), dtype=np.float64)


def _numpy(path: Path) -> Any:
    loaded = load_arrays(path)
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "biuf":
        raise ValueError("must hold one table of real numbers")
    return loaded


def _csv(path: Path) -> Any:
    return parse_csv(read_text(path)).values.astype(np.float64)
