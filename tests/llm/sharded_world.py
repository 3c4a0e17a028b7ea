"""Two processes that share out a model's parameters, for `test_sharded`: forked children of this one.

python tests/llm/sharded_world.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import assert_same, assert_same_gradients, build, gradients, naive, padded_batch
from ranks_world import fork_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nashpo.llm.fit import Packing, Padding, SharedPrefix
from nashpo.llm.logprobs import sequence_logprobs
from nashpo.llm.responses import Scored
from nashpo.llm.rounding import StochasticRounding
from nashpo.llm.sharding import gathered

FAMILIES = ("llama", "gemma2", "qwen3")
"""A head of its own; one that is the embedding, with soft caps and a window; one that is the embedding."""
PROMPT = (5, 17, 40, 8, 61)


def sharded(model: Any, ends: str = "root") -> Any:
    """Each layer and the rest shared out over both processes, in place. Embedding, last norm and head belong to the
    ``root``; or the ``head`` is by itself; or all is as ``accelerate`` has it: norm and head are one unit that stays
    gathered, the embedding is one of its own, or in theirs where it is the head."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    embedding, norm, head = model.model.embed_tokens, model.model.norm, model.lm_head
    if ends == "head":
        fully_shard(head, mesh=mesh)
    if ends == "accelerate":
        tied = embedding.weight is head.weight
        if not tied:
            fully_shard(embedding, mesh=mesh)
        fully_shard([norm, embedding, head] if tied else [norm, head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert all(p.to_local().numel() < p.numel() for p in model.parameters())
    return model


def halves(plain: Any, score: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of each process: what the plain model gives on its half; and the mean of both gradients."""
    values = [score(plain, half) for half in (0, 1)]
    each = [gradients(plain, value) for value in values]
    return values, {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}


def same(model: Any, score: Any, expected: tuple[list[Tensor], dict[str, Tensor]], rank: int) -> None:
    """Values of this process's half, and gradients, which FSDP averages over the processes."""
    values, mean = expected
    model.zero_grad()
    found = score(model, rank)
    weights = torch.linspace(-1, 1.5, len(found))
    (weights * found).sum().backward()
    assert_same(found, values[rank])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(isinstance(p.grad, DTensor) for p in trained.values())
    assert_same_gradients({name: p.grad.full_tensor() for name, p in trained.items()}, mean)


def the_primitive(rank: int) -> None:
    """Through the root's forward, the head in the root's group or in its own, frozen or trained."""
    batch = padded_batch()

    def padded(model: Any, half: int) -> Tensor:
        return sequence_logprobs(model, *(x[3 * half : 3 * half + 3] for x in batch), chunk=4)

    def full_logits(model: Any, half: int) -> Tensor:
        return naive(model, *(x[3 * half : 3 * half + 3] for x in batch))

    for family in FAMILIES:
        expected = halves(build(family), full_logits)
        for ends in ("root", "accelerate"):
            same(sharded(build(family), ends), padded, expected, rank)
    same(sharded(build("llama"), "head"), padded, halves(build("llama"), full_logits), rank)
    frozen, plain = build("llama"), build("llama")
    for model in (frozen, plain):
        model.lm_head.weight.requires_grad_(False)
    same(sharded(frozen), padded, halves(plain, full_logits), rank)


def the_layouts(rank: int) -> None:
    """What the trainer does: rows of responses that share a prompt, packed, with activation checkpointing."""
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 4, 12, 7, 5, 10)
    answers = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]
    sequences = [Scored((*PROMPT, *ids), (0,) * len(PROMPT) + (1,) * len(ids)) for ids in answers]

    def score(layout: Any) -> Any:
        def scored(model: Any, half: int) -> Tensor:
            with layout.context(model):
                found = layout.logprobs(model, sequences[3 * half : 3 * half + 3])
            return found

        return scored

    expected = halves(build("llama"), score(Padding()))
    for layout in (Packing(), SharedPrefix()):
        model = build("llama").train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model = sharded(model)
        values, mean = expected
        with layout.context(model):  # around the backward too, as in the trainer
            same(model, lambda m, half, layout=layout: layout.logprobs(m, sequences[3 * half : 3 * half + 3]),
                 (values, mean), rank)  # fmt: skip


def a_head_in_parts(rank: int) -> None:
    """Of tensor parallelism: the head alone is spread over the vocabulary, both processes have the same batch."""
    plain, model = build("llama"), build("llama")
    mesh = init_device_mesh("cpu", (2,))
    model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.data, mesh, [Shard(0)]))
    batch = padded_batch()
    expected, found = naive(plain, *batch), sequence_logprobs(model, *batch, chunk=4)
    assert_same(found, expected)
    mean = gradients(plain, expected)
    got = gradients(model, found)
    assert isinstance(got["lm_head.weight"], DTensor)
    assert_same_gradients({n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in got.items()}, mean)


def whole_weights(rank: int, folder: Path) -> None:
    """Gathered for the first process, which writes them as transformers reads them."""
    import transformers

    for family in FAMILIES:
        model, plain = sharded(build(family)), build(family)
        state = gathered(model, keep=rank == 0)
        assert state is not None
        assert bool(state) == (rank == 0)
        if rank == 0:
            path = folder / family
            model.save_pretrained(path, state_dict=state)
            assert json.loads((path / "config.json").read_text())["architectures"] == [type(plain).__name__]
            again = transformers.AutoModelForCausalLM.from_pretrained(path)
            for (name, a), (_, b) in zip(again.named_parameters(), plain.named_parameters(), strict=True):
                assert torch.equal(a, b), name
    assert gathered(build("llama"), keep=True) is None


def rounding(rank: int) -> None:
    """Sharded bf16 weights: states in float32 and in shards, other noise in each shard, resumed bit for bit. Replicas
    of data parallelism stay equal."""

    def made(state: Any = None, weights: Any = None) -> tuple[Any, StochasticRounding]:
        model = nn.Sequential(nn.Linear(32, 64, bias=False)).bfloat16()
        with torch.no_grad():
            model[0].weight.fill_(0.02)
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        if weights is not None:
            model.load_state_dict(weights)
        optimizer = StochasticRounding(torch.optim.RMSprop(model.parameters(), lr=1e-5), seed=1)
        if state is not None:
            optimizer.load_state_dict(state)
        return model, optimizer

    def steps(model: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            model(torch.ones(1, 32, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = made()
    steps(model, optimizer, 3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    held = next(iter(optimizer.state.values()))["square_avg"]
    assert isinstance(held, DTensor)
    assert held.dtype == torch.float32
    other, resumed = made(state, weights)
    steps(model, optimizer, 3)
    steps(other, resumed, 3)
    whole = model[0].weight.full_tensor()
    assert torch.equal(whole, other[0].weight.full_tensor())
    assert len(whole.unique()) > 1
    assert not torch.equal(whole[:32], whole[32:])

    replica = nn.Linear(64, 64, bias=False).bfloat16()
    with torch.no_grad():
        replica.weight.fill_(0.02)
    parallel = nn.parallel.DistributedDataParallel(replica)
    optimizer = StochasticRounding(torch.optim.AdamW(replica.parameters(), lr=1e-5), seed=1)
    for _ in range(3):
        parallel(torch.full((1, 64), 1.0 + rank, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    each = [torch.empty_like(replica.weight) for _ in range(2)]
    dist.all_gather(each, replica.weight.detach())
    assert torch.equal(each[0], each[1])
    assert len(each[0].unique()) > 1


def main() -> int:
    """The script."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        the_primitive(rank)
        the_layouts(rank)
        a_head_in_parts(rank)
        whole_weights(rank, folder)
        rounding(rank)
        dist.barrier()
        dist.destroy_process_group()
        print("done", flush=True)

    statuses = fork_ranks(2, folder / "log", work)
    for rank in range(2):
        print((folder / f"log.{rank}").read_text())
    return max(map(abs, statuses))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
