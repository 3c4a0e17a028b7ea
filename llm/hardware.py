"""GPUs by their published figures, and which part of them a program reaches.

Units: FLOP/s are dense bf16 matrix products, sizes bytes, rates bytes/s. Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nashpo.core.cli import suggestion

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One GPU, and how it reaches others.

    Attributes
    ----------
    name : str
    peak : float
        FLOP/s in bf16, without sparsity.
    single : float
        FLOP/s in fp32, without TF32.
    memory : float
        Bytes that a program can have, a GiB below what the sheet calls a GB and the driver reports.
    bandwidth : float
        Bytes/s between the GPU and its memory.
    link : float
        Bytes/s to the other GPUs of its machine, one direction.
    network : float
        Bytes/s to other machines per GPU, one direction.
    source : str
        Where the figures are published.
    """

    name: str
    peak: float
    single: float
    memory: float
    bandwidth: float
    link: float
    network: float
    source: str


HARDWARE: Mapping[str, Hardware] = {
    one.name: one
    for one in (
        Hardware(
            "a100-40", 312e12, 19.5e12, 39 * GIB, 1.555e12, 300e9, 25e9, "NVIDIA A100 and DGX A100 data sheets, SXM"
        ),
        Hardware(
            "a100-80", 312e12, 19.5e12, 79 * GIB, 2.039e12, 300e9, 25e9, "NVIDIA A100 and DGX A100 data sheets, SXM"
        ),
        Hardware("h100", 989e12, 67e12, 79 * GIB, 3.35e12, 450e9, 50e9, "NVIDIA H100 and DGX H100 data sheets, SXM"),
        Hardware("h200", 989e12, 67e12, 139 * GIB, 4.8e12, 450e9, 50e9, "NVIDIA H200 and DGX H200 data sheets, SXM"),
    )
}
"""By name. The sheets give bf16 with sparsity (half of it is dense) and NVLink in both directions (half is one)."""

_SEEN = (("H200", "h200"), ("H100", "h100"), ("A100", "a100-80"))


@dataclass(frozen=True)
class Efficiency:
    """Which part of the hardware's figures is reached. The defaults are assumptions.

    Attributes
    ----------
    training : float
        Of peak FLOP/s in forward and backward, recomputation counted as work. Public figures of pretraining with FSDP2
        on 64 A100 are higher or equal (torchtitan's docs/performance.md: 56.8 % MFU for 8B, 51.7 % for 70B with all
        layers recomputed, which is 69 % in this unit).
    forward : float
        Of peak FLOP/s in passes without gradient: log-probabilities, prompts of the sampler, judges.
    decode : float
        Of the memory's bandwidth while sampling.
    links : float
        Of link and network rates.
    measured : tuple of str
        Which of these are measurements.

    Raises
    ------
    ValueError
        On a share outside (0, 1].
    """

    training: float = 0.55
    forward: float = 0.55
    decode: float = 0.5
    links: float = 0.7
    measured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("training", "forward", "decode", "links"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"efficiency {name} = {getattr(self, name)} must be a share in (0, 1]")

    def with_measured(self, found: Mapping[str, Any]) -> "Efficiency":
        """Assumptions replaced by what ``tests/benchmarks/bench_7b.py`` measured.

        Parameters
        ----------
        found : mapping
            Its JSON; ``efficiency`` maps names of this class to shares.

        Raises
        ------
        ValueError
            If there is no such entry, or a name in it is not known.
        """
        shares = found.get("efficiency")
        if not isinstance(shares, Mapping):
            raise ValueError("the measurements have no entry 'efficiency': give the JSON that bench_7b.py wrote")
        known = ("training", "forward", "decode", "links")
        for name in shares:
            if name not in known:
                raise ValueError(f"unknown efficiency {name!r}; {suggestion(name, known, 'known')}")
        values = {name: float(value) for name, value in shares.items()}
        return replace(self, **values, measured=tuple(values))


NODE = 8
"""GPUs of one machine."""


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind, in machines of `NODE`.

    Attributes
    ----------
    hardware : Hardware
    gpus : int
    efficiency : Efficiency

    Raises
    ------
    ValueError
        Unless there is a GPU.
    """

    hardware: Hardware
    gpus: int = 1
    efficiency: Efficiency = field(default_factory=Efficiency)

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus = {self.gpus} must be at least 1")

    @property
    def machines(self) -> int:
        """How many."""
        return -(-self.gpus // NODE)

    def train(self, flops: float) -> float:
        """Seconds for FLOPs of forward and backward, all GPUs together."""
        return flops / (self.gpus * self.hardware.peak * self.efficiency.training)

    def forward(self, flops: float, single: bool = False) -> float:
        """Seconds for FLOPs of passes without gradient, all GPUs together, in bf16 or in fp32."""
        peak = self.hardware.single if single else self.hardware.peak
        return flops / (self.gpus * peak * self.efficiency.forward)

    def read(self, moved: float) -> float:
        """Seconds for bytes between GPUs and their memories, all GPUs together."""
        return moved / (self.gpus * self.hardware.bandwidth * self.efficiency.decode)

    def send(self, sent: float, through: float = 0) -> float:
        """Seconds for the bytes that one GPU sends; ``through`` of them pass every machine once, by all its cards."""
        inside = sent / (self.hardware.link * self.efficiency.links)
        share = (self.machines - 1) / self.machines / NODE
        return max(inside, through * share / (self.hardware.network * self.efficiency.links))


def hardware(name: str) -> Hardware:
    """A GPU by its name.

    Raises
    ------
    ValueError
        With the known names.
    """
    if name not in HARDWARE:
        raise ValueError(f"unknown hardware {name!r}; {suggestion(name, sorted(HARDWARE), 'known')}")
    return HARDWARE[name]


def recognized(device: str, memory: float) -> Hardware | None:
    """The GPU that a driver calls ``device``, None for one that is not known here.

    Parameters
    ----------
    device : str
        As ``torch.cuda.get_device_name`` says it.
    memory : float
        Bytes; tells the two A100 apart.
    """
    name = next((name for part, name in _SEEN if part in device), None)
    if name == "a100-80" and memory < 60e9:
        name = "a100-40"
    return None if name is None else HARDWARE[name]


def needed(bytes_per_gpu: Mapping[int, float], among: Sequence[Hardware] | None = None) -> list[str]:
    """Which hardware a job fits, the fewest GPUs of each kind: ``["1 × h200", "2 × h100", …]``.

    Parameters
    ----------
    bytes_per_gpu : mapping
        By number of GPUs, the bytes that each of them needs.
    among : sequence of Hardware, optional
        All by default, in the order of `HARDWARE` from the largest.
    """
    found = []
    for one in among or sorted(HARDWARE.values(), key=lambda kind: (-kind.memory, -kind.peak)):
        fitting = [count for count in sorted(bytes_per_gpu) if bytes_per_gpu[count] <= USABLE * one.memory]
        if fitting:
            found.append(f"{fitting[0]} × {one.name}")
    return found


USABLE = 0.95
"""Of a GPU's memory; the rest is what the allocator cannot use: an assumption."""
