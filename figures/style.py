"""How every figure looks: one colour, marker and line style per rule, text that stays legible at half size.

Colours are those of Okabe and Ito (2008), distinct under the common colour-vision deficiencies; no two rules share a
marker or a line style either, so that a grey print can be read.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nashpo.core.store import replace_file

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT = "#5F5F5F", "#D9D9D9"

WIDTH = 8.0
"""Width of a figure in inches: at 800 pixels the text of 11 points is about 15 pixels high."""

PNG_DPI = 200
VECTOR = ("svg", "pdf")

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same picture on every machine
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "figure.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.0,
    "axes.edgecolor": GREY,
    "hatch.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "nashpo",  # ids in the SVG do not change from run to run
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class RuleStyle:
    """How one rule is drawn everywhere."""

    label: str
    color: str
    marker: str
    linestyle: Any

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``, with changes."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, "label": self.label} | changes


RULE_STYLES: dict[str, RuleStyle] = {
    "sppo": RuleStyle("SPPO", VERMILLION, "o", "-"),
    "onpo": RuleStyle("ONPO", BLUE, "s", (0, (7, 1.5))),
    "inpo": RuleStyle("INPO", GREEN, "^", (0, (3, 1.2))),
    "nash-md": RuleStyle("Nash-MD", ORANGE, "D", (0, (1, 1))),
    "egpo": RuleStyle("EGPO", PURPLE, "v", (0, (6, 1.5, 1.5, 1.5))),
    "comal": RuleStyle("COMAL", BLACK, "P", (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5))),
    "spac": RuleStyle("SPAC", BLUE, "d", (0, (8, 1.5, 3, 1.5))),
    "ipo": RuleStyle("IPO", SKY, "X", (0, (4, 1, 1, 1, 1, 1, 1, 1))),
    "iterative-ipo": RuleStyle("iterative IPO", SKY, "*", (0, (4, 3))),
    "dpo": RuleStyle("DPO", GREY, "<", (0, (1, 2))),
    "iterative-dpo": RuleStyle("iterative DPO", GREY, ">", (0, (9, 3))),
}
_OTHER_COLORS = (SKY, GREY, PURPLE, GREEN)
_OTHER_MARKERS = ("h", "p", "H", "8", "1", "2", "3", "4", "+", "x", "|")
_OTHER_LINES = ((0, (2, 2)), (0, (8, 2, 2, 2)), (0, (5, 5)))


def rule_styles(names: Iterable[str]) -> list[RuleStyle]:
    """The styles of several rules of one figure, no two alike.

    Parameters
    ----------
    names : iterable of str
        Names of rules, or of rows of a sweep, ``comal k=10``: the rule and what else tells the row. A rule's first row
        has the rule's own style, further ones its colour, paler, with a marker of their own. A rule that the package
        does not know gets colour and marker from a further set.

    Returns
    -------
    list of RuleStyle
    """
    styles, seen, place = [], dict[str, int](), 0
    for name in names:
        rule, _, rest = str(name).partition(" ")
        known = RULE_STYLES.get(rule)
        label = str(name) if known is None else f"{known.label} {rest}".strip()
        again = seen.get(rule, 0)
        seen[rule] = again + 1
        if known is not None and not again:
            styles.append(replace(known, label=label))
            continue
        color = _OTHER_COLORS[place % len(_OTHER_COLORS)] if known is None else _paler(known.color, again)
        marker = _OTHER_MARKERS[place % len(_OTHER_MARKERS)]
        styles.append(RuleStyle(label, color, marker, _OTHER_LINES[place % len(_OTHER_LINES)]))
        place += 1
    return styles


def _paler(color: str, times: int) -> str:
    """The colour mixed with white, the more the higher ``times``, up to 60 %."""
    share = 0.6 * times / (times + 1)
    return to_hex([share + (1 - share) * part for part in to_rgb(color)])


def apply() -> AbstractContextManager[Any]:
    """The look as a context: ``with style.apply(): …``; the caller's own matplotlib settings come back afterwards."""
    return matplotlib.rc_context(SETTINGS)


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of the house's width, in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07))


def title(fig: Figure, text: str) -> None:
    """A bold title on the left, broken into lines where the figure is narrow."""
    width = int(7.4 * fig.get_size_inches()[0])
    fig.suptitle("\n".join(textwrap.wrap(text, width)), x=0.01, ha="left", fontweight="bold")


def decades(axis: XAxis | YAxis) -> None:
    """Ticks of a logarithmic axis at powers of ten, written out: 0.01, 0.1, 1, 10, 1,000."""
    axis.set_major_locator(LogLocator(base=10))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def png(fig: Figure, dpi: int = PNG_DPI) -> bytes:
    """The figure as a PNG."""
    return _encode(fig, "png", dpi)


def save(fig: Figure, path: Path, dpi: int = PNG_DPI) -> list[Path]:
    """Write ``path``.png, .svg and .pdf, each to a temporary name and renamed.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    path = Path(path)
    written = []
    for kind in ("png", *VECTOR):
        target = path.with_name(f"{path.name}.{kind}")
        replace_file(target, _encode(fig, kind, dpi))
        written.append(target)
    return written


def need(results: Mapping[str, np.ndarray], keys: Iterable[str], what: str) -> None:
    """Refuse results that lack a key which a figure reads.

    Raises
    ------
    ValueError
        Naming the figure, the missing keys and the command that makes them.
    """
    missing = [key for key in keys if key not in results]
    if missing:
        source = "nashpo sweep" if missing[0].startswith("sweep/") else "nashpo verify"
        raise ValueError(f"the figure '{what}' cannot be drawn: the results lack {', '.join(missing)}; run `{source}`")


def _encode(fig: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same results give the same bytes
    with apply():
        fig.savefig(buffer, format=kind, dpi=dpi, metadata=dates.get(kind))
    return buffer.getvalue()
