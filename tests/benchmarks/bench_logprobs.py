"""Log-probabilities without logits against the full-logits forms: time and memory as ratios of one run.

    python tests/benchmarks/bench_logprobs.py [--quick] [--rounds N] [--threads N] [--device cpu|cuda] [--data FILE]
                                              [--json FILE]

Forward and backward in fp32, without activation checkpointing. Every measurement is made in a process of its own; the
variants take turns, round by round, and medians over the rounds are reported (``--json`` has smallest and largest too).

- *head*: `token_logprobs` on 2,048 tokens, hidden size 512, vocabulary 32,768, with gradients of hidden states and
  weight; against gather - logsumexp and log_softmax - gather over full logits. With a trained head it takes a fourth
  matrix product where full logits take three, in exchange for not keeping them.
- *frozen*: the same with a head that is not trained (adapters): two products in both forms.
- *rows*: prompts and responses of AlpacaEval's lengths (words and marks counted as tokens, cut to 512) through a random
  Llama of 4 layers of 256 with the same vocabulary: `packed_logprobs`, against `sequence_logprobs` on the padded batch,
  and full logits. Without the data, lengths are lognormal with the data's median and spread of logs: 20 and 0.84 for
  prompts, 90 and 1.27 for responses. Useful tokens are those of prompts and responses, without padding.

Numbers and gradients of our forms agree with the full-logits form to 1e-5 of the largest, or nothing is reported. That
is checked once per variant, after its measurement.

"CPU s" is the processor time (user and system, all threads) of a forward and backward, which other work on the machine
disturbs less than the clock's "wall s"; the best of a child's repetitions counts. On CPU, time targets are held against
processor time, on CUDA against the clock. Extra peak is the highest resident memory of the child (VmHWM) less what was
resident before the first forward; on CUDA, the highest allocated memory less what was allocated before. Gradients are
part of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
VOCABULARY, HIDDEN, TOKENS = 32_768, 512, 2_048
LLAMA = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
ROWS, MAX_LENGTH = 8, 512
AGREEMENT = 1e-5

# ------------------------------------------------------------------------------------------------ in a child: the forms


@dataclass(frozen=True)
class Work:
    """Log-probabilities to differentiate: the form, the tensors that get gradients, and the useful tokens."""

    logprobs: Callable[[], Any]
    exact: Callable[[], Any]
    """The full-logits form on the same tensors."""
    trained: Sequence[Any]
    tokens: int

    def gradients(self, logprobs: Callable[[], Any]) -> list[Any]:
        """The log-probabilities and their gradients, each row weighed differently."""
        import torch

        found = logprobs()
        weights = torch.linspace(-1, 1.5, len(found), device=found.device)
        return [found.detach(), *torch.autograd.grad(found, self.trained, weights)]


def chunked(hidden: Any, weight: Any, targets: Any) -> Any:
    from nashpo.llm.head import token_logprobs

    return token_logprobs(hidden, weight, None, targets)


def gather_less_logsumexp(hidden: Any, weight: Any, targets: Any) -> Any:
    logits = hidden @ weight.T
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def log_softmax_gather(hidden: Any, weight: Any, targets: Any) -> Any:
    return (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def head(form: Callable[..., Any], frozen: bool, device: str, data: Path) -> Work:
    import torch

    torch.manual_seed(0)
    hidden = torch.empty(TOKENS, HIDDEN, device=device).normal_().requires_grad_()
    weight = torch.empty(VOCABULARY, HIDDEN, device=device).normal_(std=0.02).requires_grad_(not frozen)
    inputs = (hidden, weight, torch.randint(VOCABULARY, (TOKENS,), device=device))
    trained = [hidden] if frozen else [hidden, weight]
    return Work(partial(form, *inputs), partial(gather_less_logsumexp, *inputs), trained, TOKENS)


def packed(model: Any, *batch: Any) -> Callable[[], Any]:
    from nashpo.llm.packing import Packed, packed_logprobs

    return partial(packed_logprobs, model, Packed.from_padded(*batch))


def padded(model: Any, *batch: Any) -> Callable[[], Any]:
    from nashpo.llm.logprobs import sequence_logprobs

    return partial(sequence_logprobs, model, *batch)


def full(model: Any, ids: Any, exists: Any, scored: Any) -> Callable[[], Any]:
    def logprobs() -> Any:
        logits = model(input_ids=ids, attention_mask=exists, use_cache=False).logits[:, :-1]
        return (logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * scored[:, 1:]).sum(-1)

    return logprobs


def rows(form: Callable[..., Callable[[], Any]], device: str, data: Path) -> Work:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=MAX_LENGTH, **LLAMA)
    model = LlamaForCausalLM(config).float().to(device)
    spans = lengths(data, ROWS)
    longest = max(map(sum, spans))
    ids = torch.randint(VOCABULARY, (ROWS, longest), device=device)
    exists, scored = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, response) in enumerate(spans):
        exists[row, : prompt + response] = 1
        scored[row, prompt : prompt + response] = 1
    inputs = (model, ids, exists, scored)
    return Work(form(*inputs), full(*inputs), list(model.parameters()), sum(map(sum, spans)))


def lengths(data: Path, count: int) -> list[tuple[int, int]]:
    """(prompt, response) in tokens, in a fixed random order; every prompt at least one token, as every response."""
    import numpy as np

    random = np.random.default_rng(0)
    if data.exists():
        with gzip.open(data, "rt", encoding="utf-8") as lines:
            judged = [json.loads(line) for line in lines]
        found = [
            (words(row["prompt"]), words(random.choice([r["text"] for r in row["responses"].values()])))
            for row in (judged[i] for i in random.permutation(len(judged))[:count])
        ]
    else:
        draws = random.lognormal([math.log(20), math.log(90)], [0.84, 1.27], (count, 2))
        found = [(int(prompt), int(response)) for prompt, response in draws]
    cut = [(min(max(prompt, 1), MAX_LENGTH // 2), max(response, 1)) for prompt, response in found]
    return [(prompt, min(response, MAX_LENGTH - prompt)) for prompt, response in cut]


def words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


# --------------------------------------------------------------------------------------------- in a child: the measures


@dataclass(frozen=True)
class Measured:
    """Best seconds of one forward and backward, and MiB, of one child."""

    wall: float
    cpu: float
    extra: float
    tokens: int
    error: float | None
    """Largest deviation from full logits, of numbers and gradients, over the largest of each; None if not asked for."""
    device: str
    torch: str


def resident(field: str) -> float:
    """``VmHWM`` or ``VmRSS`` of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measure(make: Callable[[str, Path], Work], check: bool, options: argparse.Namespace) -> Measured:
    import torch

    torch.set_num_threads(options.threads)
    device, cuda = options.device, options.device == "cuda"
    work = make(device, options.data)
    a = torch.ones(64, 64, device=device, requires_grad=True)
    torch.autograd.grad(a @ a, a, a.detach())  # the first product and the first gradient load libraries
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident("VmRSS")
    walls, cpus = [], []
    for _ in range(options.repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        work.gradients(work.logprobs)
        if cuda:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")
    error = None
    if check:
        pairs = zip(work.gradients(work.logprobs), work.gradients(work.exact), strict=True)
        error = max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return Measured(min(walls), min(cpus), peak - before, work.tokens, error, name, torch.__version__)


# ------------------------------------------------------------------------------------------------ the parent: the table


@dataclass(frozen=True)
class Variant:
    title: str
    make: Callable[[str, Path], Work]
    against: str | None = None
    """The variant of ours that is held against this one; None for ours."""
    time_target: float | None = None
    memory_target: float | None = None
    checked: bool = False
    """Held against the full-logits form once."""
    slow: bool = False
    """Left out by --quick."""


VARIANTS = {
    "head": Variant("head: token_logprobs", partial(head, chunked, False), checked=True),
    "head-lse": Variant(
        "  gather - logsumexp",
        partial(head, gather_less_logsumexp, False),
        "head",
        time_target=1.1,
        memory_target=1 / 6,
    ),
    "head-softmax": Variant("  log_softmax, gather", partial(head, log_softmax_gather, False), "head"),
    "frozen": Variant("frozen head: token_logprobs", partial(head, chunked, True), checked=True, slow=True),
    "frozen-softmax": Variant("  log_softmax, gather", partial(head, log_softmax_gather, True), "frozen", slow=True),
    "packed": Variant("rows: packed_logprobs", partial(rows, packed), checked=True),
    "padded": Variant("  padded sequence_logprobs", partial(rows, padded), "packed", checked=True),
    "full": Variant("  padded, full logits", partial(rows, full), "packed", slow=True),
}


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ratios are our form's over this one's."""

    title: str
    wall: float
    cpu: float
    extra: float
    tokens_per_second: float
    wall_ratio: float | None = None
    cpu_ratio: float | None = None
    memory_ratio: float | None = None
    met: bool | None = None


def in_child(name: str, check: bool, options: argparse.Namespace) -> Measured:
    command = [sys.executable, __file__, "--child", name, *(["--check"] if check else [])]
    command += ["--device", options.device, "--data", str(options.data)]
    command += ["--threads", str(options.threads), "--repetitions", str(options.repetitions)]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
    if measured.error is not None and not measured.error <= AGREEMENT:
        raise SystemExit(f"{name} is off the full-logits form by {measured.error:.3g}, more than {AGREEMENT:g}")
    return measured


def row(variant: Variant, found: dict[str, list[Measured]], own: list[Measured]) -> Row:
    def median(measured: list[Measured], field: str) -> float:
        return statistics.median(getattr(m, field) for m in measured)

    wall, cpu, extra = (median(own, field) for field in ("wall", "cpu", "extra"))
    speed = own[0].tokens / wall
    if variant.against is None:
        return Row(variant.title, wall, cpu, extra, speed)
    ours = found[variant.against]
    by_clock, by_processor, memory = (
        median(ours, field) / this for field, this in (("wall", wall), ("cpu", cpu), ("extra", extra))
    )
    time_ratio = by_processor if own[0].device == "CPU" else by_clock
    held = [(time_ratio, variant.time_target), (memory, variant.memory_target)]
    asked = [ratio <= target for ratio, target in held if target is not None]
    met = all(asked) if asked else None
    return Row(variant.title, wall, cpu, extra, speed, by_clock, by_processor, memory, met)


def table(rows: Sequence[Row]) -> str:
    title = f"{'':30}{'wall s':>8}{'CPU s':>8}{'MiB':>7}{'tokens/s':>10}   {'ours/this: wall':>15}{'CPU':>6}{'MiB':>7}"
    lines = [title, "-" * len(title)]
    for r in rows:
        line = f"{r.title:30}{r.wall:8.3f}{r.cpu:8.3f}{r.extra:7.0f}{r.tokens_per_second:10,.0f}"
        if r.wall_ratio is not None:
            line += f"   {r.wall_ratio:15.2f}{r.cpu_ratio:6.2f}{r.memory_ratio:7.3f}"
        if r.met is not None:
            line += f"   {'met' if r.met else 'MISSED'}"
        lines.append(line)
    return "\n".join(lines)


def spread(measured: list[Measured], field: str) -> dict[str, float]:
    values = [getattr(m, field) for m in measured]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of log-probabilities, as ratios of one run.")
    parser.add_argument("--quick", action="store_true", help="one round of two repetitions, main variants only")
    parser.add_argument("--rounds", type=int, default=3, help="children of each variant (default 3)")
    parser.add_argument(
        "--repetitions", type=int, default=3, help="in each child, of which the best counts (default 3)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="judged responses, for their lengths")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    parser.add_argument("--child", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(asdict(measure(VARIANTS[options.child].make, options.check, options))))
        return 0
    if options.quick:
        options.rounds, options.repetitions = 1, 2
    if min(options.rounds, options.repetitions, options.threads) < 1:
        parser.error("--rounds, --repetitions and --threads must be at least 1")

    names = [name for name, variant in VARIANTS.items() if not (options.quick and variant.slow)]
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            print(f"round {turn + 1} of {options.rounds}: {name} ...", end=" ", file=sys.stderr, flush=True)
            measured = in_child(name, turn == 0 and VARIANTS[name].checked, options)
            found[name].append(measured)
            agrees = "" if measured.error is None else f", off full logits by {measured.error:.1e}"
            print(f"{measured.wall:.2f} s, CPU {measured.cpu:.2f} s{agrees}", file=sys.stderr, flush=True)
    result = {name: row(VARIANTS[name], found, found[name]) for name in names}
    first = found[names[0]][0]
    print(table(list(result.values())))
    clock = "CPU" if first.device == "CPU" else "wall"
    lengths_of = "AlpacaEval's" if options.data.exists() else f"lognormal (no {options.data.name})"
    for v in (v for v in VARIANTS.values() if v.time_target is not None):
        print(f"\ntargets against {v.title.strip()}: {clock} <= {v.time_target:.3g}, MiB <= {v.memory_target:.3g}")
    print(f"{first.device}, {options.threads} threads, torch {first.torch}, medians of {options.rounds} rounds")
    print(f"lengths of rows: {lengths_of}")
    if options.json:
        measures = ("wall", "cpu", "extra")
        content = {
            "python": platform.python_version(),
            "torch": first.torch,
            "device": first.device,
            "threads": options.threads,
            "lengths": lengths_of,
            "rows": {name: asdict(r) for name, r in result.items()},
            "spread": {name: {m: spread(several, m) for m in measures} for name, several in found.items()},
            "error": {name: several[0].error for name, several in found.items() if several[0].error is not None},
        }
        Path(options.json).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 0 if all(r.met is not False for r in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
