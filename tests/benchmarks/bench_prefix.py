"""A training step on K = 5 responses per prompt: padded, packed, and packed with the prompts shared.

    python tests/benchmarks/bench_prefix.py [--cases NAME ...] [--steps N] [--rounds N] [--data FILE] [--json FILE]

A ~30 M-parameter Llama (that of bench_trainer.py) in fp32 without activation checkpointing is fitted by
`nashpo.llm.fit.fit` with AdamW, each layout in a process of its own. All layouts train on the same batches in the same
order, and their losses must agree, or nothing is reported. Two cases:

    alpaca  responses of five models to prompts of AlpacaEval, cut to 512 tokens: prompts are short there
    long    prompts of 512 tokens with responses of 128, random ids: prompts are most of the tokens

Time runs from the end of the first backward to that of the last, by the clock; "CPU" is the processor time of all
threads. Other work on the machine disturbs the first, and the second less: layouts take turns in every round, and of
each step the shortest time of all rounds counts. Peak is the highest resident memory of the process (VmHWM); "above
start" is the same less what was taken when model and libraries were loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench_trainer import DATA, LLAMA, MAX_LENGTH, VOCABULARY, host_memory, judged, tokenizer_folder

K = 5
Row = tuple[list[int], list[list[int]]]
"""A prompt and its responses, as token ids."""

# ------------------------------------------------------------------------------------------------------------- the data


def alpaca(data: Path, count: int) -> list[Row]:
    """K responses to each of ``count`` prompts, both in a fixed random order."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(tokenizer_folder(data)), list(judged(data))
    random = np.random.default_rng(0)
    result: list[Row] = []
    for i in random.permutation(len(rows)):
        prompt = tokenizer(rows[i]["prompt"] + "\n\n")["input_ids"]
        room = MAX_LENGTH - len(prompt)
        texts = list(rows[i]["responses"].values())
        some = [texts[j]["text"] for j in random.permutation(len(texts))[:K]]
        if room > 0:
            result.append((prompt, [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:room] for text in some]))
        if len(result) == count:
            return result
    raise SystemExit(f"{data} has {len(result)} usable prompts of the {count} that --steps asks for")


def long_prompts(data: Path, count: int) -> list[Row]:
    """Random ids: 512 tokens of prompt, K times 128 of response."""
    import numpy as np

    random = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        drawn: list[int] = random.integers(0, VOCABULARY, length).tolist()
        return drawn

    return [(ids(512), [ids(128) for _ in range(K)]) for _ in range(count)]


# -------------------------------------------------------------------------------------------------- layouts and targets


def padded() -> Any:
    from nashpo.llm.fit import Padding

    return Padding()


def packed() -> Any:
    from nashpo.llm.fit import Packing

    return Packing()


def shared() -> Any:
    from nashpo.llm.fit import SharedPrefix

    return SharedPrefix()


LAYOUTS: dict[str, Callable[[], Any]] = {"padded": padded, "packed": packed, "shared": shared}


@dataclass(frozen=True)
class Target:
    """``layout`` is to be ``speed`` times as fast as ``other``, at ``peak`` of its memory at most."""

    layout: str
    other: str
    speed: float
    peak: float | None = None


@dataclass(frozen=True)
class Case:
    title: str
    rows: Callable[[Path, int], list[Row]]
    prompts: int
    """Of a step."""
    layouts: tuple[str, ...]
    targets: tuple[Target, ...]


ALPACA, LONG = "alpaca", "long"
CASES = {
    ALPACA: Case(
        "AlpacaEval lengths",
        alpaca,
        4,
        tuple(LAYOUTS),
        (Target("packed", "padded", 1.6, 0.7), Target("shared", "padded", 1.6, 0.7), Target("shared", "packed", 0.95)),
    ),
    LONG: Case(
        "prompts of 512, responses of 128",
        long_prompts,
        2,
        ("packed", "shared"),
        (Target("shared", "packed", 1.8),),
    ),
}

# ---------------------------------------------------------------------------------------------- one layout, one process


@dataclass(frozen=True)
class Measured:
    """Of one layout: seconds of each step but the first, by the clock and of this process on all cores; losses of all
    steps; bytes."""

    seconds: list[float]
    cpu_seconds: list[float]
    losses: list[float]
    peak: int
    start: int
    parameters: int
    threads: int
    versions: dict[str, str]


def measure(layout: Any, rows: Sequence[Row], prompts: int, steps: int) -> Measured:
    """Fit, in this process."""
    import torch
    import transformers
    from torch.optim import AdamW
    from transformers import LlamaConfig, LlamaForCausalLM

    from nashpo.llm.fit import Progress, Settings, fit
    from nashpo.llm.objectives import Pairwise
    from nashpo.llm.responses import Responses, Scored, StageData

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=True, **LLAMA, **ids)
    model = LlamaForCausalLM(config).float()
    responses = Responses.drawn([[Scored.completion(p, r) for r in several] for p, several in rows])
    data = StageData(responses, torch.linspace(-0.5, 0.5, K, dtype=torch.float64).expand(len(rows), K), step=1.0)
    base = torch.tensor([[-10.0 * len(r) for r in several] for _, several in rows], dtype=torch.float64)
    ends: list[float] = []
    cpu_ends: list[float] = []
    losses: list[float] = []

    def note(progress: Progress) -> bool:
        ends.append(time.perf_counter())
        cpu_ends.append(time.process_time())
        losses.append(progress.loss)
        return False

    settings = Settings(
        steps=steps,
        optimizer=partial(AdamW, lr=1e-5),
        batch=prompts,
        layout=layout,
        watch=lambda data, log_base: note,
    )
    start = host_memory("VmRSS")
    fit(model, data, [(1.0, base)], Pairwise(), settings, 0, started=None)
    return Measured(
        [after - before for before, after in zip(ends, ends[1:])],
        [after - before for before, after in zip(cpu_ends, cpu_ends[1:])],
        losses,
        host_memory("VmHWM"),
        start,
        sum(p.numel() for p in model.parameters()),
        torch.get_num_threads(),
        {"torch": torch.__version__, "transformers": transformers.__version__},
    )


def in_child(case: str, layout: str, work: Path, steps: int) -> Measured:
    command = [sys.executable, __file__, "--child", case, layout, "--work", str(work), "--steps", str(steps)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{layout} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Measured(**json.loads((work / "measured.json").read_text()))


def best_of(rounds: Sequence[Measured]) -> Measured:
    """The shortest time of each step and the largest memory of several runs of one layout."""
    seconds = [min(times) for times in zip(*(r.seconds for r in rounds))]
    cpu_seconds = [min(times) for times in zip(*(r.cpu_seconds for r in rounds))]
    largest = max(rounds, key=lambda r: r.peak)
    return Measured(
        **{**asdict(largest), "seconds": seconds, "cpu_seconds": cpu_seconds, "start": min(r.start for r in rounds)}
    )


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Ratio:
    """A target and what was found: times as fast, by the clock and by processor time, and shares of memory."""

    target: Target
    speed: float
    cpu_speed: float
    peak: float
    above_start: float

    @property
    def met(self) -> bool:
        """By processor time, which other work on the machine disturbs least."""
        return self.cpu_speed >= self.target.speed and (self.target.peak is None or self.peak <= self.target.peak)


def ratios(case: Case, found: Mapping[str, Measured]) -> list[Ratio]:
    result = []
    for target in case.targets:
        one, other = found[target.layout], found[target.other]
        result.append(
            Ratio(
                target,
                sum(other.seconds) / sum(one.seconds),
                sum(other.cpu_seconds) / sum(one.cpu_seconds),
                one.peak / other.peak,
                (one.peak - one.start) / (other.peak - other.start),
            )
        )
    return result


def check_losses(found: Mapping[str, Measured]) -> None:
    """All layouts must have trained alike: rounding, amplified by AdamW over a few steps, is far below 1e-3."""
    expected = found["packed"].losses
    for name, m in found.items():
        for step, (loss, other) in enumerate(zip(m.losses, expected, strict=True)):
            if not math.isclose(loss, other, rel_tol=1e-3):
                raise SystemExit(f"{name} has loss {loss:g} in step {step}, packed {other:g}")


def fed(rows: Sequence[Row]) -> dict[str, int]:
    """Tokens of all rows, with each prompt once per response and once."""
    responses = sum(len(r) for _, several in rows for r in several)
    return {
        "prompts repeated": responses + sum(len(p) * len(several) for p, several in rows),
        "prompts once": responses + sum(len(p) for p, _ in rows),
    }


def table(found: Mapping[str, Measured], made: Sequence[Ratio]) -> str:
    lines = [f"{'layout':22}{'s/step':>10}{'CPU s':>10}{'peak MiB':>10}{'above start':>13}{'last loss':>12}"]
    for name, m in found.items():
        steps = len(m.seconds)
        line = f"{name:22}{sum(m.seconds) / steps:10.2f}{sum(m.cpu_seconds) / steps:10.2f}{m.peak / 2**20:10,.0f}"
        lines.append(line + f"{(m.peak - m.start) / 2**20:13,.0f}{m.losses[-1]:12.4f}")
    for r in made:
        limit = "" if r.target.peak is None else f" (<= {r.target.peak:g})"
        lines.append(
            f"{r.target.layout} against {r.target.other}: {r.speed:.2f} times as fast, CPU {r.cpu_speed:.2f}"
            f" (>= {r.target.speed:g}); peak {r.peak:.2f}{limit}, above start {r.above_start:.2f}:"
            f" {'met' if r.met else 'NOT MET'}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A training step on K responses: padded, packed, prompts shared.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--steps", type=int, default=3, help="steps of each layout, the first not timed (default 3)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each layout, in turns; the best time of a step")
    parser.add_argument("--data", type=Path, default=DATA, help="judged responses (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write what was measured to FILE as well")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        case, layout = options.child
        rows = json.loads((options.work / "rows.json").read_text())
        child = measure(LAYOUTS[layout](), rows, CASES[case].prompts, options.steps)
        (options.work / "measured.json").write_text(json.dumps(asdict(child)))
        return 0
    if options.steps < 2 or options.rounds < 1:
        parser.error("--steps must be at least 2 (the first is not timed) and --rounds at least 1")
    if ALPACA in options.cases and not options.data.exists():
        parser.error(f"no file {options.data}: give the judged responses by --data")

    content, met = {}, True
    for name in options.cases:
        case = CASES[name]
        rows = case.rows(options.data, case.prompts * options.steps)
        runs: dict[str, list[Measured]] = {layout: [] for layout in case.layouts}
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "rows.json").write_text(json.dumps(rows))
            for _ in range(options.rounds):
                for layout in case.layouts:
                    runs[layout].append(in_child(name, layout, Path(work), options.steps))
        found = {layout: best_of(several) for layout, several in runs.items()}
        check_losses(found)
        made, tokens = ratios(case, found), fed(rows)
        met = met and all(r.met for r in made)
        one = found["packed"]
        print(f"{case.title}: Llama of {one.parameters / 1e6:.1f} M parameters on CPU, {one.threads} threads;", end=" ")
        print(f"{case.prompts} prompts a step, K = {K}, {options.steps - 1} timed steps, {options.rounds} rounds;")
        print(f"tokens of all steps: {', '.join(f'{what} {count:,}' for what, count in tokens.items())}\n")
        print(table(found, made) + "\n", flush=True)
        content[name] = {
            "tokens": tokens,
            "measured": {layout: asdict(m) for layout, m in found.items()},
            "ratios": [{**asdict(r), "met": r.met} for r in made],
        }
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
