"""How long prompts and responses are, and what follows from it: the longest of several, rows to lay out.

Lengths are in tokens. Nothing here imports torch.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from nashpo.llm.flops import Rows


@dataclass(frozen=True)
class Lengths:
    """Prompts and responses by their lengths, each value equally likely.

    Attributes
    ----------
    prompts, responses : tuple of float
        Quantiles, or a sample.

    Raises
    ------
    ValueError
        On an empty list or a length below 1.
    """

    prompts: tuple[float, ...]
    responses: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("prompts", "responses"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"lengths of {name} must be at least 1 token each, and there must be one")

    @property
    def prompt(self) -> float:
        """Mean of a prompt."""
        return math.fsum(self.prompts) / len(self.prompts)

    @property
    def response(self) -> float:
        """Mean of a response."""
        return math.fsum(self.responses) / len(self.responses)

    @property
    def squared(self) -> float:
        """Mean of a response's square."""
        return math.fsum(r * r for r in self.responses) / len(self.responses)

    def longest(self, count: float) -> float:
        """Mean of the longest of ``count`` responses, E max = Σ_i r_(i) ((i/m)^count − ((i−1)/m)^count)."""
        m = len(self.responses)
        ordered = sorted(self.responses)
        return math.fsum(r * (((i + 1) / m) ** count - (i / m) ** count) for i, r in enumerate(ordered))

    def rows(self, count: int, K: int) -> Rows:
        """``count`` prompts with K responses, every length as often as it is likely; the order is fixed and mixed."""
        p, r = len(self.prompts), len(self.responses)
        return [
            (
                round(self.prompts[_mixed(b, p)]),
                [round(self.responses[_mixed(b * K + k, r)]) for k in range(K)],
            )
            for b in range(count)
        ]


def _mixed(number: int, count: int) -> int:
    """Numbers in turn, far ones after one another, each equally often."""
    step = next(s for s in range(max(1, round(0.618 * count)), count + 1) if math.gcd(s, count) == 1)
    return number * step % count


def spread(mean: float, deviation: float, count: int = 20) -> tuple[float, ...]:
    """Quantiles of a log-normal distribution with this mean, log-standard deviation ``deviation``; at least 1 each."""
    normal = NormalDist()
    found = [math.exp(deviation * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    scale = mean * count / math.fsum(found)
    return tuple(max(1.0, float(round(scale * x))) for x in found)


def capped(values: tuple[float, ...], most: float) -> tuple[float, ...]:
    """No value above ``most``."""
    return tuple(min(value, most) for value in values)
