"""What judges with weights share: they are read when first asked, in batches of similar lengths, without dropout.

Shapes: N rows of token ids, of any lengths; a forward pass reads padded ids and mask (B, L).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nashpo.core.cli import one_line
from nashpo.llm.judges.config import ModelConfig
from nashpo.llm.judges.judge import Verdict
from nashpo.llm.judges.weights import find_folder, fingerprint

log = logging.getLogger(__name__)

SETTINGS_WITHOUT_EFFECT = ("path", "revision", "device", "batch_size", "base")
"""Settings that say where weights lie or how fast they are read: a cache is not invalidated by them."""


class ModelJudge:
    """Base of the model judges.

    A subclass says how weights are loaded, `load`, and how a batch is read, `forward`.

    Parameters
    ----------
    config : ModelConfig
    device : str
        Where it computes.
    """

    name: str
    left: bool = False
    """Whether padding stands on the left."""

    def __init__(self, config: ModelConfig, device: str) -> None:
        self.config = config
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._folder: Path | None = None
        self._loaded = False
        self.tokenizer: Any = None
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Set ``tokenizer`` and ``model`` from the files of a folder."""
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What is read off a batch, (B, ...)."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What else its answers depend on."""
        return {}

    def folder(self) -> Path:
        """Where the weights lie; downloaded where they are not here."""
        if self._folder is None:
            self._folder = find_folder(self.config.path, self.config.revision)
        return self._folder

    def describe(self) -> dict[str, Any]:
        """Its settings and what identifies the weights."""
        settings = {k: v for k, v in vars(self.config).items() if k not in SETTINGS_WITHOUT_EFFECT}
        weights = fingerprint(self.config.path, self.folder())
        return {"judge": self.name, "weights": weights, **settings, **self.identity()}

    def check(self) -> None:
        """That the weights are there and those of such a judge: they are read once, on the CPU, and forgotten.

        Hours of sampling come before a judge is first asked.

        Raises
        ------
        ValueError
            With one line.
        """
        folder = find_folder(self.config.path, self.config.revision, small=True)
        if not (folder / "config.json").is_file():
            raise ValueError(f"judge: {self.config.path} has no config.json; {self.name} needs a folder of a model")
        if self._loaded:
            return
        try:
            self.load(self.folder())
        except MemoryError:
            raise
        except Exception as error:  # the loaders' own, of many kinds
            problem = one_line(error)
            if isinstance(error, ValueError) and problem.startswith(("judge", self.config.path)):
                raise  # which knows its place
            raise ValueError(f"judge: {self.config.path} cannot be read as {self.name} ({problem})") from error
        self.close()

    def ready(self) -> None:
        """Load the weights unless they are loaded."""
        if not self._loaded:
            self.load(self.folder())
            self.model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
            self._loaded = True

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What `forward` reads off each row, (N, ...), float64 on the CPU; the longest rows first."""
        pad = self.tokenizer.pad_token_id
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
        read: dict[int, Tensor] = {}
        for start in range(0, len(order), self.config.batch_size):
            some = order[start : start + self.config.batch_size]
            longest = len(rows[some[0]])
            ids = torch.full((len(some), longest), 0 if pad is None else pad)
            mask = torch.zeros((len(some), longest), dtype=torch.long)
            for b, n in enumerate(some):
                place = slice(longest - len(rows[n]), longest) if self.left else slice(0, len(rows[n]))
                ids[b, place] = torch.tensor(rows[n])
                mask[b, place] = 1
            out = self.forward(ids.to(self.device), mask.to(self.device)).double().cpu()
            read.update(zip(some, out, strict=True))
        return torch.stack([read[n] for n in range(len(rows))])

    def close(self) -> None:
        """Forget the weights."""
        self.model, self._loaded = None, False


def limit(tokenizer: Any, config: Any, chosen: int | None) -> int | None:
    """The longest input in tokens: what was chosen, else what the model's configuration and its tokenizer allow."""
    if chosen is not None:
        return chosen
    known = [getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    return min((int(n) for n in known if n is not None and 0 < n < 10**9), default=None)


def too_long(tokens: int, most: int | None) -> Verdict | None:
    """An abstention where an input is longer than the model reads: a response that was cut is not judged."""
    if most is None or tokens <= most:
        return None
    return Verdict(None, {"abstained": f"{tokens} tokens, more than {most}"})


def load_tokenizer(folder: Path, **options: Any) -> Any:
    """The tokenizer of a folder; padding is the end token where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"judge: {folder} has no tokenizer that can be read ({reason})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
