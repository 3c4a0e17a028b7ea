"""An engine as the sampler of a fit: `nashpo.llm.sampling.Sampler` on top of `nashpo.llm.engines`.

Shapes: B prompts as token ids, K responses each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nashpo.llm.engines.engine import Engine
from nashpo.llm.mixture import Parts
from nashpo.llm.prompts import Prompt
from nashpo.llm.responses import Responses, Scored


@dataclass(frozen=True)
class _InMemory:
    """A policy that is lent as modules only."""

    parts: Parts
    name: str = "policy"

    def folder(self) -> Path:
        raise ValueError("this policy is in memory only: sample it with the engine transformers, or save it first")


@dataclass(frozen=True)
class EngineSampler:
    """Draws by an engine. Equal prompts get equal responses for one seed.

    Parameters
    ----------
    engine : Engine
        One that takes modules: ``transformers`` or ``continuous``.
    """

    engine: Engine

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        """Responses of the mixture to every prompt."""
        asked = [Prompt.of(list(prompt), prompt) for prompt in prompts]
        drawn = self.engine.sample(_InMemory(parts), asked, seed)
        rows = [[Scored.completion(p, c.ids) for c in row] for p, row in zip(prompts, drawn, strict=True)]
        return Responses.drawn(rows)
