"""Where named policies live: whole models, or LoRA adapters on one base.

A policy's name is a string that a backend's state can hold. ``use`` lends a policy for scoring or sampling, ``train``
lends one that may change, and ``save`` gives the changed one a name. ``start``, ``reference`` and ``behavior`` are the
names of the origins that a rule's slots begin as.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

Policy = str | dict[str, Any]
"""A policy's handle: its name, or ``{"mixture": [[a, name], …]}``."""


def factors(base: Sequence[tuple[float, Policy]]) -> tuple[tuple[float, str], ...]:
    """A product of powers of policies and mixtures as one of stored policies, each once."""
    total: dict[str, float] = {}
    for a, policy in base:
        inner: Any = [(1.0, policy)] if isinstance(policy, str) else policy["mixture"]
        for weight, name in inner:
            total[name] = total.get(name, 0.0) + a * weight
    return tuple((a, name) for name, a in total.items())


class Policies(Protocol):
    """A store of named policies."""

    def __contains__(self, name: str) -> bool:
        """Whether a policy of that name can be used."""
        ...

    def use(self, name: str) -> Any:
        """Context manager: the policy as a module in eval mode, for reading only. May be nested."""
        ...

    def train(self, name: str) -> Any:
        """Context manager: a module that begins as the policy and may be trained."""
        ...

    def save(self, name: str, module: nn.Module) -> None:
        """Give the policy that a ``train`` context lent a name."""
        ...

    def keep(self, names: Collection[str]) -> None:
        """Delete every other policy; origins stay."""
        ...


def _missing(name: str, known: Collection[str]) -> ValueError:
    return ValueError(f"there is no policy '{name}'; given are {', '.join(sorted(known)) or 'none'}")


class WholeModels:
    """Policies as whole models of one architecture, in memory or as safetensors files.

    Parameters
    ----------
    model : nn.Module
        The start. It becomes the first of a few working copies whose weights are exchanged: do not use it elsewhere.
    folder : path, optional
        Where policies are saved, one ``NAME.safetensors`` each; in memory without one. Files found there are used.
    origins : mapping origin -> nn.Module, optional
        Further origins, ``reference`` and ``behavior``; by default both are the start.

    Raises
    ------
    ValueError
        If an origin is the very same module as the start.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str] | None = None,
        origins: Mapping[str, nn.Module] | None = None,
    ) -> None:
        origins = dict(origins or {})
        for name, module in origins.items():
            if module is model:
                raise ValueError(f"origin '{name}' is the same module as the start: give a copy, or leave it out")
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._origins = {name: snapshot(module) for name, module in {"start": model, **origins}.items()}
        for name in ("reference", "behavior"):
            self._origins.setdefault(name, self._origins["start"])
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._free: list[tuple[str, nn.Module]] = [("start", model)]
        self._template = model

    def __contains__(self, name: str) -> bool:
        return name in self._origins or name in self._memory or (self.folder is not None and self._path(name).exists())

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def names(self) -> set[str]:
        """Every saved policy, origins not counted."""
        saved = set(self._memory)
        return saved if self.folder is None else saved | {file.stem for file in self.folder.glob("*.safetensors")}

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """The policy for reading; a nested use of another policy gets a working copy of its own."""
        holding, module = self._take(name)
        try:
            self._load(module, name, holding)
            holding = name
            yield module.eval()
        finally:
            self._free.append((holding, module))

    @contextmanager
    def train(self, name: str) -> Iterator[nn.Module]:
        """A working copy with the policy's weights."""
        holding, module = self._take(name)
        try:
            self._load(module, name, holding)
            yield module
        finally:
            module.zero_grad(set_to_none=True)
            self._free.append(("", module.eval()))

    def _take(self, name: str) -> tuple[str, nn.Module]:
        for i, (holding, _) in enumerate(self._free):
            if holding == name:
                return self._free.pop(i)
        return self._free.pop(0) if self._free else ("", deepcopy(self._template))

    def _load(self, module: nn.Module, name: str, holding: str) -> None:
        if holding == name:
            return
        if name not in self:
            raise _missing(name, {*self._origins, *self.names()})
        found = self._origins.get(name, self._memory.get(name))
        if found is not None:
            module.load_state_dict(found)
        else:
            load_model(module, self._path(name))

    def save(self, name: str, module: nn.Module) -> None:
        """Bit for bit; a file appears whole or not at all."""
        if self.folder is None:
            self._memory[name] = snapshot(module)
            return
        aside = self.folder / f"{name}.{os.getpid()}.part"
        save_model(module, str(aside))
        os.replace(aside, self._path(name))

    def keep(self, names: Collection[str]) -> None:
        """Delete every policy not named."""
        self._memory = {name: state for name, state in self._memory.items() if name in names}
        if self.folder is not None:
            for file in self.folder.glob("*.safetensors"):
                if file.stem not in names:
                    file.unlink()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's weights and buffers."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


class AdapterPolicies:
    """Policies as named LoRA adapters on one base model; the origins are the base itself, with adapters off.

    Parameters
    ----------
    model : nn.Module
        The base, which stays as it is; adapters are put into it.
    config : peft.LoraConfig
        Of every adapter. The output head must not be among its target modules.
    folder : path, optional
        Where adapters are saved, one ``NAME.safetensors`` each; in memory without one.
    """

    _WORK = "work"

    def __init__(self, model: nn.Module, config: Any, folder: str | os.PathLike[str] | None = None) -> None:
        from peft import get_peft_model

        self.config = config
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.model = get_peft_model(model, config, adapter_name=self._WORK)
        self._origins = ("start", "reference", "behavior")
        self._active: list[str] = []

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def names(self) -> set[str]:
        """Every saved policy, origins not counted."""
        saved = set(self.model.peft_config) - {self._WORK}
        return saved if self.folder is None else saved | {file.stem for file in self.folder.glob("*.safetensors")}

    def __contains__(self, name: str) -> bool:
        return name in self._origins or name in self.names()

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """The base with that adapter on, or with adapters off; the adapter of an outer ``use`` is put back."""
        self._switch(name)
        self._active.append(name)
        try:
            yield self.model.eval()
        finally:
            self._active.pop()
            if self._active:
                self._switch(self._active[-1])
            else:
                self.model.enable_adapter_layers()

    @contextmanager
    def train(self, name: str) -> Iterator[nn.Module]:
        """The base with a trainable adapter that begins as the policy's; a fresh one (a policy of no change) for an
        origin."""
        self.model.enable_adapter_layers()
        if self._WORK in self.model.peft_config:
            self.model.delete_adapter(self._WORK)
        self.model.add_adapter(self._WORK, self.config)
        if name not in self._origins:
            self._resident(name)
            self._put(self._WORK, self._state(name))
        self.model.set_adapter(self._WORK)
        self._active.append(self._WORK)
        try:
            yield self.model
        finally:
            self._active.pop()
            self.model.zero_grad(set_to_none=True)
            self.model.eval()

    def _switch(self, name: str) -> None:
        if name in self._origins:
            self.model.disable_adapter_layers()
            return
        self.model.enable_adapter_layers()
        if name != self._WORK:
            self._resident(name)
        self.model.set_adapter(name)
        if name != self._WORK:
            for key, parameter in self.model.named_parameters():
                if f".{name}." in key:
                    parameter.requires_grad_(False)

    def _resident(self, name: str) -> None:
        if name in self.model.peft_config:
            return
        if name not in self:
            raise _missing(name, {*self._origins, *self.names()})
        self.model.add_adapter(name, self.config)
        self._put(name, load_file(self._path(name)))

    def _state(self, name: str) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        state: dict[str, Tensor] = get_peft_model_state_dict(self.model, adapter_name=name)
        return {key: value.detach().clone().contiguous() for key, value in state.items()}

    def _put(self, name: str, state: dict[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, state, adapter_name=name)

    def save(self, name: str, module: nn.Module) -> None:
        """A copy of the trained adapter under a name."""
        state = self._state(self._WORK)
        if self.folder is not None:
            aside = self.folder / f"{name}.{os.getpid()}.part"
            save_file(state, str(aside))
            os.replace(aside, self._path(name))
        if name not in self.model.peft_config:
            self.model.add_adapter(name, self.config)
        with torch.no_grad():
            self._put(name, state)

    def keep(self, names: Collection[str]) -> None:
        """Delete every adapter not named."""
        for name in set(self.model.peft_config) - {self._WORK, *names}:
            self.model.delete_adapter(name)
        if self.folder is not None:
            for file in self.folder.glob("*.safetensors"):
                if file.stem not in names:
                    file.unlink()
