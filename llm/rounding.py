"""16-bit weights that small updates move: an optimizer whose result is rounded up or down at random.

The spacing of bf16 numbers near 0.02 is 1.2e-4, so that an update of 5e-7 rounds to nothing there. Rounded up with the
probability with which it is nearer to the upper neighbour, the weight moves by the update in expectation: E[round(x)] =
x. Only weights are in 16 bits then: the optimizer sees weights and gradients in float32 and keeps its states so.

Shapes: any; each parameter is rounded element by element.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nashpo.llm.sampling import derived_seed

BUCKET = 2**26
"""Elements of the parameters that are in float32 at one time, a larger one alone: 0.25 GiB, and as much of gradients
and of noise."""
UPDATES = "rounded_updates"
"""Under this name a group of parameters remembers how many updates have been rounded; checkpoints hold it."""


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Values as bfloat16, each one of its two neighbours at random, so that the expectation is the value.

    Parameters
    ----------
    values : float32
        What bfloat16 represents stays as it is, infinities and NaN too.
    generator : torch.Generator
        On the device of the values.

    Returns
    -------
    bfloat16, of the values' shape
    """
    noise = torch.randint(1 << 16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    # A bfloat16 is the upper half of a float32: a carry out of the lower half goes to the neighbour away from 0.
    rounded = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


class StochasticRounding(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not typed here
    """Another optimizer, its bfloat16 parameters updated in float32 and then rounded at random.

    The noise is a function of the seed, the number of the update, the parameter's place and, where parameters are
    sharded, the place of the shard. So replicas stay equal, and a run goes on from `state_dict` bit for bit.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One that treats parameters one by one and needs no closure, as SGD, RMSprop, Adam, AdamW and Adagrad do. Groups,
        states and their names in a checkpoint are its own.
    seed : int

    Raises
    ------
    ValueError
        If none of the parameters is bfloat16, or some are float16, whose updates underflow besides.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        types = {p.dtype for group in optimizer.param_groups for p in group["params"]}
        if torch.float16 in types:
            raise ValueError("float16 weights cannot be rounded at random: load the model in bfloat16")
        if torch.bfloat16 not in types:
            shown = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
            raise ValueError(
                f"bf16_rounding = 'stochastic' has no effect on weights that are {shown}: leave it out, or train"
                " bfloat16 weights"
            )
        self.optimizer = optimizer
        self.seed = seed
        # What schedulers and hooks of an optimizer expect; groups and states are shared with the one inside.
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state
        for group in self.param_groups:
            group.setdefault(UPDATES, 0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update.

        Raises
        ------
        ValueError
            With a closure, or from an optimizer that counts in its groups and would count parameters here.
        """
        if closure is not None:
            raise ValueError("an optimizer that calls the model itself cannot be rounded: use RMSprop or AdamW")
        place = 0
        for group in self.param_groups:
            for bucket in _buckets(group["params"]):
                self._update(group, bucket, place)
                place += len(bucket)
        for group in self.param_groups:
            group[UPDATES] += 1

    def _update(self, group: dict[str, Any], parameters: list[Tensor], place: int) -> None:
        """Update some parameters of a group, ``place`` other parameters before them, by the optimizer inside."""
        optimizer, state = self.optimizer, self.state
        stand_ins = [_in_float32(p) for p in parameters]
        part = {**group, "params": stand_ins}
        optimizer.param_groups = [part]
        optimizer.state = type(state)(dict, {s: state[p] for p, s in zip(parameters, stand_ins) if p in state})
        try:
            optimizer.step()
            states = optimizer.state
        finally:
            optimizer.param_groups, optimizer.state = self.param_groups, state
        changed = [name for name in group if name != "params" and part[name] is not group[name]]
        if changed or len(part) != len(group):
            raise ValueError(
                f"{type(optimizer).__name__} changes its settings in a step ({', '.join(changed) or 'new ones'}): its"
                " updates cannot be rounded at random; use RMSprop or AdamW"
            )
        for number, (p, stand_in) in enumerate(zip(parameters, stand_ins)):
            if stand_in in states:
                state[p] = states[stand_in]
            if stand_in is not p and p.grad is not None:
                local, updated = _local(p), _local(stand_in)
                generator = torch.Generator(local.device)
                where = f"{group[UPDATES]}/{place + number}/{_shard(p)}"
                generator.manual_seed(derived_seed(self.seed, f"rounding/{where}"))
                local.copy_(round_stochastically(updated, generator))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the optimizer inside."""
        self.optimizer.zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """States as they were saved: torch would cast them to the 16 bits of their parameters."""
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        parameters = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for p, name in zip(parameters, names, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                held = self.state[p][key]
                if isinstance(value, Tensor) and value.dtype != held.dtype:
                    self.state[p][key] = value.to(held.device, copy=True)


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in their order, few enough at a time."""
    bucket: list[Tensor] = []
    size = 0
    for p in parameters:
        if bucket and size + _local(p).numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += _local(p).numel()
    if bucket:
        yield bucket


def _in_float32(p: Tensor) -> Tensor:
    """A copy of a bfloat16 parameter with its gradient; other parameters themselves."""
    if p.dtype != torch.bfloat16:
        return p
    stand_in = nn.Parameter(p.detach().float(), requires_grad=p.requires_grad)
    stand_in.grad = None if p.grad is None else p.grad.float()
    return stand_in


def _local(values: Tensor) -> Tensor:
    """This process's shard of a sharded tensor, which shares its memory; other tensors themselves."""
    return values.to_local() if hasattr(values, "to_local") else values


def _shard(p: Tensor) -> str:
    """Which shard of a parameter this process has, the same on replicas of the shard; empty where it is whole."""
    placements = getattr(p, "placements", None)
    if placements is None:
        return ""
    where = p.device_mesh.get_coordinate() or []
    return ".".join(str(place) for place, placement in zip(where, placements) if placement.is_shard())
