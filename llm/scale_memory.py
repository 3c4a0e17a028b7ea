"""Peak memory of one GPU in training and sampling, on paper.

Sizes are bytes; H is the hidden size, A and G the heads of queries and keys, d their size, F the width of the MLP. What
an allocator wastes is not in it. Nothing here imports torch.
"""

from collections.abc import Mapping

from nashpo.llm.flops import Shape
from nashpo.llm.hardware import Hardware
from nashpo.llm.lengths import Lengths
from nashpo.llm.scale import WIDTH, Fit
from nashpo.llm.scale_sampling import Sampler, slots


def training_memory(shape: Shape, fit: Fit, gpus: int = 1) -> Mapping[str, float]:
    """Bytes of one GPU by what takes them, at their peak.

    Weights, gradients and states are sharded over all GPUs. Under autocast one GPU holds a bf16 copy of all weights
    through the forward; sharded, two layers are gathered in bf16. With checkpointing, every layer keeps its input
    and one layer is computed again, whose gradients in the MLP take another 6 F bytes per token.
    """
    trained = shape.parameters if fit.rank is None else shape.lora(fit.rank)
    stream = 4 if fit.autocast else WIDTH
    inside = shape.kept(fit.autocast) + 6 * shape.inner
    layers = inside + shape.layers * stream * shape.hidden
    if not fit.checkpointing:
        layers = inside + (shape.layers - 1) * shape.kept(fit.autocast)
    whole = shape.head if fit.rank is None else 0
    copies = 0.0
    if gpus > 1:
        copies = WIDTH * (2 * shape.layer + shape.head)
    elif fit.autocast:
        copies = WIDTH * (shape.body + shape.head)
    frozen = 0 if fit.rank is None else fit.weight * shape.parameters
    adapters = fit.weight if fit.rank is None else 4
    return {
        "weights": (frozen + adapters * trained) / gpus,
        "gradients": fit.gradient * trained / gpus,
        "optimizer states": fit.states * trained / gpus,
        "weights in bf16": copies,
        "activations": fit.micro * layers,
        "output head": 4.0 * whole + fit.micro * shape.hidden * (WIDTH + 4),
    }


def scoring_memory(shape: Shape, tokens: float, weight: float = WIDTH) -> Mapping[str, float]:
    """Bytes of one GPU in a pass without gradient over so many tokens at a time.

    Of a layer there are at most its input in bf16 and, in fp32, what its norm makes of it, 12 H, and three tensors of
    the MLP, 6 F.
    """
    inside = 12 * shape.hidden + 6 * shape.inner
    return {"weights": weight * shape.parameters, "activations": tokens * inside}


def sampling_memory(shape: Shape, lengths: Lengths, sampler: Sampler, hardware: Hardware) -> Mapping[str, float]:
    """Bytes of one GPU while sampling: its part of weights, keys and values."""
    places = slots(shape, lengths, sampler, hardware)
    cached = places * shape.cached(WIDTH) * (lengths.prompt + lengths.response)
    return {"weights": WIDTH * shape.parameters / sampler.split, "keys and values": cached / sampler.split}
