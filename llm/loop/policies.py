"""A run's policies on disk: each a folder that transformers (or peft) can load by itself.

A policy's name is its folder's path within the run, ``iterations/001/model`` for instance, or an origin: ``start``,
``reference``, ``behavior``. Names are what the state of the self-play loop holds.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nashpo.llm.mixture import Parts
from nashpo.llm.policies import AdapterPolicies, Policy

ORIGINS = ("start", "reference", "behavior")


class RunPolicies(Protocol):
    """The policies of one run."""

    def use(self, name: str) -> Any:
        """Context manager: the policy as a module in eval mode, for reading only. May be nested."""
        ...

    def train(self, name: str) -> Any:
        """Context manager: a module that begins as the policy and may be trained."""
        ...

    def save(self, folder: Path, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what a ``train`` context lent into a folder; its weights are ``state`` where it is sharded."""
        ...

    def path(self, name: str) -> Path:
        """Where a policy's weights lie."""
        ...

    def release(self) -> None:
        """Forget what is held in memory and not in use."""
        ...


class WholeFolders:
    """Policies as whole models; in memory is what is in use, and no more of it than was ever in use at once.

    Parameters
    ----------
    run : path
    origins : mapping origin -> path
        Folders of the origins.
    load : callable
        From a folder to a model.
    tokenizer
        Written beside the weights.
    """

    def __init__(
        self, run: Path, origins: Mapping[str, Path], load: Callable[[Path], nn.Module], tokenizer: Any = None
    ) -> None:
        self._run = run
        self._origins = dict(origins)
        self._load = load
        self._tokenizer = tokenizer
        self._free: list[tuple[Path, nn.Module]] = []
        self._lent = self._most = 0

    def path(self, name: str) -> Path:
        """Where a policy's weights lie."""
        return self._origins[name] if name in self._origins else self._run / name

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """The policy for reading; a nested use of another policy gets a model of its own."""
        path, module = self._take(name)
        try:
            yield module.eval()
        finally:
            self._lent -= 1
            self._free.append((path, module))
            del self._free[: -self._most]

    @contextmanager
    def train(self, name: str) -> Iterator[nn.Module]:
        """A model with the policy's weights, which is forgotten afterwards."""
        _, module = self._take(name)
        self.release()
        try:
            yield module
        finally:
            self._lent -= 1

    def _take(self, name: str) -> tuple[Path, nn.Module]:
        path = self.path(name)
        self._lent += 1
        self._most = max(self._most, self._lent)
        for i, (held, _) in enumerate(self._free):
            if held == path:
                return self._free.pop(i)
        if len(self._free) + self._lent > self._most:
            self._free = self._free[: max(0, self._most - self._lent)]  # make room before another one is loaded
        return path, self._load(path)

    def save(self, folder: Path, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        """Weights as safetensors, configuration, tokenizer."""
        root: Any = module
        root.save_pretrained(folder, state_dict=state)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)

    def release(self) -> None:
        """Forget what is held in memory and not in use."""
        self._free.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class AdapterFolders(AdapterPolicies):
    """Policies as LoRA adapters on one base model; the origins are the base, with adapters off.

    Parameters
    ----------
    run : path
    base : nn.Module
    config : peft.LoraConfig
    origin : path
        The base's own folder.
    """

    _WEIGHTS = "adapter_model.safetensors"

    def __init__(self, run: Path, base: nn.Module, config: Any, origin: Path) -> None:
        super().__init__(base, config)
        self._run = run
        self._origin = origin

    def _path(self, name: str) -> Path:
        return self._run / name / self._WEIGHTS

    def __contains__(self, name: str) -> bool:
        return name in ORIGINS or name in self.model.peft_config or self._path(name).exists()

    def path(self, name: str) -> Path:
        """Where an adapter lies; of an origin, the base model."""
        return self._origin if name in ORIGINS else self._run / name

    def _resident(self, name: str) -> None:
        if name not in self.model.peft_config:
            self.model.add_adapter(name, self.config)
            self._put(name, load_file(self._path(name)))

    @contextmanager
    def train(self, name: str) -> Iterator[nn.Module]:
        """The base with the one adapter that is trained, under peft's usual name."""
        with super().train(name) as model:
            for other in set(self.model.peft_config) - {self._WORK}:
                self.model.delete_adapter(other)  # a checkpoint holds what is trained and nothing else
            yield model

    def save(self, folder: Path | str, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        """The adapter as peft writes it; adapters are never sharded."""
        save_file(self._state(self._WORK), str(Path(folder) / self._WEIGHTS), metadata={"format": "pt"})
        self.config.save_pretrained(str(folder))

    def release(self) -> None:
        """Adapters are small; the base stays."""
        self.model.set_adapter(self._WORK)  # peft warns when one that is on is deleted
        for other in set(self.model.peft_config) - {self._WORK}:
            self.model.delete_adapter(other)


@dataclass(frozen=True)
class Source:
    """A policy as engines want it: `nashpo.llm.engines.engine.PolicySource`."""

    name: str
    factors: tuple[tuple[float, str], ...]
    policies: RunPolicies

    @property
    def parts(self) -> Parts:
        """The policy as a geometric mixture of stored ones."""
        return [(a, partial(self.policies.use, name)) for a, name in self.factors]

    def folder(self) -> Path:
        """The folder of a policy that is stored as it is.

        Raises
        ------
        ValueError
            For a geometric mixture, which an engine of its own process cannot sample from.
        """
        if len(self.factors) != 1:
            shown = ", ".join(f"{name}^{a:g}" for a, name in self.factors)
            raise ValueError(
                f"the geometric mixture {shown} can be sampled by sampling.engine=transformers only: other engines hold"
                " one set of weights"
            )
        return self.policies.path(self.factors[0][1])


def label(policy: Policy) -> str:
    """A policy in a file's name."""
    if isinstance(policy, str):
        return policy.replace("/", "-")
    return "mixture-" + "-".join(f"{a:g}-{name.replace('/', '-')}" for a, name in policy["mixture"])
