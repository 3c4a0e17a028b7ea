"""What the tests of the engines share: prompts, policies in memory or on disk, and contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nashpo.llm.engines.engine import EngineContext
from nashpo.llm.mixture import Parts
from nashpo.llm.prompts import Prompt


def prompt(*ids: int) -> Prompt:
    """A prompt that is token ids."""
    return Prompt.of(list(ids), ids)


@contextmanager
def lent(model: nn.Module) -> Iterator[nn.Module]:
    yield model


@dataclass(frozen=True)
class Policy:
    """A policy source made of modules, a folder, or both."""

    parts: Parts = ()
    where: Path | None = None
    name: str = "iterate"

    @classmethod
    def of(cls, model: nn.Module) -> Policy:
        return cls([(1.0, partial(lent, model))])

    def folder(self) -> Path:
        if self.where is None:
            raise ValueError(f"policy '{self.name}' is a mixture and has no folder")
        return self.where


@dataclass
class Counted:
    """Counts the finished responses that an engine reports."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, count: int) -> None:
        self.calls.append(count)


def context(
    tokenizer: Any = None,
    end_ids: Sequence[int] = (1,),
    vocabulary: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> EngineContext:
    return EngineContext(tokenizer, tuple(end_ids), 0, vocabulary, torch.device("cpu"), progress)


def prompts(count: int, vocabulary: int, seed: int = 0, longest: int = 20) -> list[Prompt]:
    """Seeded prompts of 1 to ``longest`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [prompt(*torch.randint(2, vocabulary, (n,), generator=generator).tolist()) for n in lengths]
