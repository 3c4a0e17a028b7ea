"""What is known of an iteration's samples and judge: from its evaluation, else from the shards that were read.

Shapes: numbers and intervals.
"""

from nashpo.figures.training_run import Interval, Iteration, interval
from nashpo.llm.intervals import mean_interval, rate_interval

SEED = 0
"""Of the weights of an interval."""


def sample_gap(iteration: Iteration) -> Interval | None:
    """Mean duality gap of the prompts' K x K games."""
    return iteration.interval("samples", "gap") or interval(rate_interval(iteration.shards.gaps, SEED))


def sample_tokens(iteration: Iteration) -> Interval | None:
    """Mean length of the training samples, in tokens."""
    return iteration.interval("samples", "tokens") or interval(mean_interval(iteration.shards.prompt_tokens, least=0))


def cyclic_share(iteration: Iteration) -> float | None:
    """Share of cyclic triples among all triples of responses to one prompt."""
    known, shards = iteration.value("samples", "cyclic_share"), iteration.shards
    return shards.cyclic / shards.triples if known is None and shards.triples else known


def asymmetry(iteration: Iteration) -> float | None:
    """Mean of |P(a over b) + P(b over a) − 1| before symmetrizing."""
    known = iteration.value("samples", "asymmetry")
    return iteration.shards.asymmetry if known is None else known


def abstained_share(iteration: Iteration) -> float | None:
    """Share of prompts with a pair on which the judge abstained."""
    shards = iteration.shards
    return shards.abstained / shards.judged if shards.judged else None


def finished_share(iteration: Iteration) -> float | None:
    """Share of samples that ended by themselves."""
    known = iteration.value("samples", "finished_share")
    return iteration.shards.finished if known is None else known


def longer_wins(iteration: Iteration) -> float | None:
    """Mean win rate of the longer one of two samples, ½ where the judge does not mind length."""
    bias = iteration.value("samples", "length_bias")
    return iteration.shards.longer_wins if bias is None else 0.5 + bias
