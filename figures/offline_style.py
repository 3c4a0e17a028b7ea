"""How the methods of the figures about offline learning look: a rule's own colour, DPO's weights as shades of grey."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from nashpo.figures import style
from nashpo.figures.style import RuleStyle

METHODS: dict[str, RuleStyle] = {
    "SPAC average": RuleStyle("SPAC, average", style.BLUE, "o", "-"),
    "SPAC last": RuleStyle("SPAC, last", style.SKY, "s", (0, (6, 1.5))),
    "SPAC constant": RuleStyle("SPAC, constant λ", style.PURPLE, "v", (0, (6, 1.5, 1.5, 1.5))),
    "MLE": RuleStyle("MLE, greedy", style.VERMILLION, "X", (0, (3, 1.2))),
    "IPO": RuleStyle("IPO", style.GREEN, "D", (0, (4, 1, 1, 1))),
    "χPO": RuleStyle("χPO", style.ORANGE, "P", (0, (5, 1, 1, 1, 1, 1))),
}
"""Methods by their names in the results; a name may go on with a KL weight."""
AGAIN: tuple[tuple[str, Any], ...] = (("H", ":"), ("8", "-"), ("4", (0, (1, 2))))
"""Marker and line of a method's second, third and fourth weight."""
_DPO_MARKERS = ("<", ">", "^", "d", "p", "h", "*", "1")
_DARKEST, _LIGHTEST = 0.25, 0.68


def method_styles(names: Iterable[str]) -> list[RuleStyle]:
    """A look for every method of one figure, no two alike.

    Parameters
    ----------
    names : iterable of str
        Keys of `METHODS`, a key and a KL weight, such as ``IPO 0.1``; anything else (``DPO 0.1``) is drawn in grey.
    """
    listed = [str(name) for name in names]
    others = [name for name in listed if name not in METHODS and name.partition(" ")[0] not in METHODS]
    shades = np.linspace(_DARKEST, _LIGHTEST, max(len(others), 2))
    styles = []
    for name in listed:
        base, _, rest = name.partition(" ")
        if name in METHODS:
            styles.append(METHODS[name])
        elif base in METHODS:
            known = METHODS[base]
            # The same method with another weight keeps its colour and changes the marker and the line.
            again = sum(style.label.startswith(f"{known.label}, ") for style in styles)
            marker, line = (known.marker, known.linestyle) if not again else AGAIN[(again - 1) % len(AGAIN)]
            styles.append(RuleStyle(f"{known.label}, τ = {rest}", known.color, marker, line))
        else:
            place = others.index(name)
            weight = f"{base}, τ = {rest}" if rest else base
            marker = _DPO_MARKERS[place % len(_DPO_MARKERS)]
            styles.append(RuleStyle(weight, str(round(float(shades[place]), 3)), marker, (0, (1 + place, 1))))
    return styles


def small(look: RuleStyle, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of a line that is one of many."""
    return look.line(linewidth=1.7, markersize=5.5) | changes
