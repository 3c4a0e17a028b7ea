"""The tables of ``llm/SCALE.md``: published runs on 8 GPUs and 70B on 8 machines, what saves work, what fits.

    python -m nashpo.llm.scale [--price P] [--measured bench_7b.json]

Hours are of the clock, GPU-hours of all GPUs. Nothing here imports torch.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nashpo.llm.flops import SHAPES, forward_flops, packed, padded, shared, training_flops
from nashpo.llm.hardware import GIB, HARDWARE, Cluster, Efficiency, needed
from nashpo.llm.lengths import Lengths
from nashpo.llm.scale import STORE, Fit, cost, gpu_hours, judging, training
from nashpo.llm.scale_memory import training_memory
from nashpo.llm.scale_runs import ALPACA_EVAL, ASSUMED, LONG_PROMPTS, ONPO, RUNS, SPPO, phases
from nashpo.llm.scale_sampling import EAGER, SAMPLER_MEMORY, Sampler, sampling

PRICE = 2.0
"""Of one GPU-hour, in any currency; no quotation."""
PADDED = 4
"""Prompts of a padded micro-batch."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; all columns but the first are set to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def assumptions(efficiency: Efficiency) -> str:
    """Hardware and shares of it."""
    gpus = table(
        ["GPU", "peak, TFLOP/s bf16", "memory, GiB", "memory, TB/s", "to GPUs, GB/s", "to machines, GB/s", "from"],
        [
            (
                one.name,
                f"{one.peak / 1e12:.0f}",
                f"{one.memory / GIB:.0f}",
                f"{one.bandwidth / 1e12:.2f}",
                f"{one.link / 1e9:.0f}",
                f"{one.network / 1e9:.0f}",
                one.source,
            )
            for one in HARDWARE.values()
        ],
    )
    what = {
        "training": "of peak, forward and backward, recomputation counted as work",
        "forward": "of peak, without gradient: log-probabilities, prompts, judges",
        "decode": "of the memory's bandwidth, while sampling",
        "links": "of the links between GPUs and machines",
    }
    shares = [
        (f"{text}", f"{getattr(efficiency, name):.2f}", "measured" if name in efficiency.measured else "assumed")
        for name, text in what.items()
    ]
    waits = [
        (f"seconds per forward that {who} waits for its program", f"{seconds:.3f}", "assumed")
        for who, seconds in (("an engine made for sampling", Sampler().overhead), ("transformers' own", EAGER))
    ]
    rest = [
        ("of a GPU's memory for weights, keys and values of the sampler", f"{SAMPLER_MEMORY:.2f}", "assumed"),
        ("GB/s between a machine and the disk", f"{STORE / 1e9:.0f}", "assumed"),
        ("sequences at a time, where they fit", f"{Sampler().slots}", "vLLM's default"),
        ("tokens of a prompt, mean", f"{ASSUMED.prompt:.0f}", "assumed"),
        ("tokens of a response, mean", f"{ASSUMED.response:.0f}", "assumed"),
    ]
    return f"{gpus}\n\n{table(['share or size', 'value', 'is'], [*shares, *waits, *rest])}"


def runs(efficiency: Efficiency, price: float) -> str:
    """Phases of all runs: three iterations each."""
    rows: list[tuple[object, ...]] = []
    for run in RUNS:
        found = phases(run, efficiency)
        total = sum(phase.seconds for phase in found)
        for number, phase in enumerate(found):
            rows.append(
                (
                    run.title if not number else "",
                    phase.name,
                    f"{phase.tokens / 1e6:,.0f}",
                    f"{phase.flops / 1e18:,.1f}",
                    f"{phase.moved / 1e15:,.1f}",
                    f"{phase.sent / 1e12:,.1f}",
                    f"{phase.seconds / 3600:.2f}",
                    f"{phase.seconds / total:.0%}",
                    phase.bound,
                )
            )
        hours = gpu_hours(found, run.gpus)
        told = f"**{hours:,.0f} GPU-hours, {cost(found, run.gpus, price):,.0f} at {price:g} each**"
        rows.append(("", told, "", "", "", "", f"**{total / 3600:.2f}**", "", ""))
    head = ["run", "phase", "M tokens", "EFLOP", "PB moved", "TB sent", "hours", "share", "bound by"]
    return table(head, rows)


def layouts() -> str:
    """Training FLOPs of padded, packed and prefix-shared batches, in units of the packed one."""
    shape = SHAPES["mistral-7b"]
    rows = []
    for title, lengths, K in (
        ("prompts like UltraFeedback's (assumed), K = 5", ASSUMED, 5),
        ("the same, best and worst alone", ASSUMED, 2),
        ("AlpacaEval, K = 5", ALPACA_EVAL, 5),
        ("prompt 512, responses 128, K = 5", LONG_PROMPTS, 5),
    ):
        batch = lengths.rows(400, K)
        made = [partial(padded, micro=PADDED)(shape, batch), packed(shape, batch), shared(shape, batch)]
        one = training_flops(shape, made[1])
        rows.append(
            (
                title,
                f"{lengths.prompt:.0f} / {lengths.response:.0f}",
                *(f"{b.tokens / made[1].tokens:.2f}" for b in made),
                *(f"{training_flops(shape, b) / one:.2f}" for b in made),
            )
        )
    head = ["lengths", "mean prompt / response"]
    head += [f"{what}, {name}" for what in ("tokens", "FLOPs") for name in ("padded", "packed", "shared")]
    return table(head, rows)


def savings(efficiency: Efficiency) -> str:
    """What single choices change in one iteration of the SPPO and ONPO runs, in GPU-hours."""
    rows: list[tuple[object, ...]] = []
    cluster = Cluster(SPPO.hardware, SPPO.gpus, efficiency)

    def sampled(sampler: Sampler, lengths: Lengths = SPPO.lengths) -> float:
        found = sampling(SPPO.shape, lengths, SPPO.prompts, SPPO.K, cluster, sampler)
        return gpu_hours([found], SPPO.gpus)

    base = sampled(SPPO.sampler)
    for title, sampler in (
        ("SPPO, sampling: all prompts of a copy in one call", Sampler()),
        ("… 64 prompts per call, each ends with its longest response", Sampler(call=64)),
        ("… every prompt read K times", Sampler(prefix=False)),
        ("… transformers' continuous batching", Sampler(prefix=False, overhead=EAGER)),
        (
            "… transformers' generate in batches of 64",
            Sampler(slots=64, continuous=False, prefix=False, overhead=EAGER),
        ),
    ):
        found = sampled(sampler)
        rows.append((title, f"{found:.1f}", f"{found / base:.2f}"))
    base = 0.0
    for title, count, layout in (
        ("SPPO, training: best and worst of 5, packed", 2, packed),
        ("… prompts shared", 2, shared),
        (f"… padded, {PADDED} prompts at a time", 2, partial(padded, micro=PADDED)),
        ("… forward and backward over all 5, packed", 5, packed),
    ):
        found = gpu_hours([training(SPPO.shape, SPPO.batch(count, layout), SPPO.fit, cluster)], SPPO.gpus)
        base = base or found
        rows.append((title, f"{found:.1f}", f"{found / base:.2f}"))
    other = Cluster(ONPO.hardware, ONPO.gpus, efficiency)
    base = 0.0
    for title, asked in (
        ("ONPO, 8B judge: all pairs of 8 in both orders, 56 questions", 56),
        ("… in one order, 28", 28),
        ("… a tournament for best and worst, 11 (INPO's paper)", 11),
    ):
        found = gpu_hours([judging(ONPO.judge, ONPO.lengths, ONPO.prompts * asked, other)], ONPO.gpus)
        base = base or found
        rows.append((title, f"{found:.1f}", f"{found / base:.2f}"))
    base = 0.0
    for K in (5, 2, 8):
        found = gpu_hours(phases(replace(SPPO, K=K), efficiency), SPPO.gpus) / SPPO.iterations
        base = base or found
        rows.append((f"{'SPPO, whole iteration: ' if K == 5 else '… '}K = {K}", f"{found:.1f}", f"{found / base:.2f}"))
    return table(["choice", "GPU-hours per iteration", "ratio"], rows)


FITS = (
    ("full, fp32 weights, RMSprop", Fit(states=4)),
    ("full, fp32 weights, AdamW", Fit(states=8)),
    ("full, bf16 weights rounded at random, RMSprop", Fit(weight=2, gradient=2, states=4, autocast=False)),
    ("LoRA, rank 16, bf16 weights", Fit(weight=2, gradient=4, states=8, rank=16, autocast=False)),
)
"""Ways to train, and what they keep per trained weight."""


def memory() -> str:
    """Peak memory per GPU in training, and what it fits."""
    rows = []
    for name in ("mistral-7b", "llama-3-8b", "gemma-2-9b", "llama-3-70b"):
        for title, fit in FITS:
            by = {n: sum(training_memory(SHAPES[name], fit, n).values()) for n in (1, 2, 4, 8, 16, 32, 64)}
            fits = ", ".join(needed(by))
            rows.append((name, title, *(f"{by[n] / GIB:.0f}" for n in (1, 8, 64)), fits or "none of these"))
    return table(["model", "training", "GiB on 1 GPU", "each of 8", "each of 64", "fewest GPUs"], rows)


def rates(efficiency: Efficiency) -> str:
    """What one H200 is predicted to do, to be held against ``bench_7b.py``."""
    shape, cluster = SHAPES["mistral-7b"], Cluster(HARDWARE["h200"], 1, efficiency)
    batch = packed(shape, ASSUMED.rows(400, 5))
    seconds = {"log-probabilities": cluster.forward(forward_flops(shape, batch))}
    flops = {"log-probabilities": forward_flops(shape, batch)}
    for name, fit in (("LoRA step", FITS[3][1]), ("full step, RMSprop", FITS[0][1])):
        seconds[name] = training(shape, batch, fit, cluster).seconds
        flops[name] = training_flops(shape, batch, fit.rank)
    rows = [
        (name, f"{batch.useful / took:,.0f}", f"{flops[name] / took / cluster.hardware.peak:.0%}")
        for name, took in seconds.items()
    ]
    for name, sampler in (
        ("sampling, engine made for it", Sampler(prefix=False)),
        ("sampling, transformers' continuous", Sampler(prefix=False, overhead=EAGER)),
        ("sampling, generate, batches of 64", Sampler(slots=64, continuous=False, prefix=False, overhead=EAGER)),
    ):
        found = sampling(shape, ASSUMED, 1000, 5, cluster, sampler)
        rows.append((name, f"{5000 * ASSUMED.response / found.seconds:,.0f}", ""))
    return table(["Mistral-7B on one H200", "tokens/s", "MFU"], rows)


def tables(efficiency: Efficiency | None = None, price: float = PRICE) -> dict[str, str]:
    """All tables by their title, in the page's order."""
    shares = efficiency or Efficiency()
    return {
        "Assumptions": assumptions(shares),
        "The runs": runs(shares, price),
        "Layouts": layouts(),
        "Choices": savings(shares),
        "Memory": memory(),
        "One GPU": rates(shares),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables in markdown."""
    parser = argparse.ArgumentParser(prog="python -m nashpo.llm.scale", description="The tables of llm/SCALE.md.")
    parser.add_argument("--price", type=float, default=PRICE, help="of a GPU-hour (default %(default)s)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="JSON of bench_7b.py: measured for assumed")
    options = parser.parse_args(arguments)
    efficiency = Efficiency()
    if options.measured is not None:
        try:
            efficiency = efficiency.with_measured(json.loads(options.measured.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            parser.error(f"--measured {options.measured}: {error}")
    print("\n\n".join(f"## {title}\n\n{text}" for title, text in tables(efficiency, options.price).items()))
