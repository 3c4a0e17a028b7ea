"""A training step of a ~30 M-parameter Llama on AlpacaEval pairs: our trainer, packed and padded, and TRL's.

    python tests/benchmarks/bench_trainer.py [--steps N] [--rounds N] [--cpu] [--data FILE] [--trl-python FILE]
                                             [--json FILE]

All variants train the same random model on the same token ids, already cut to 512, 4 pairs per step, in fp32 without
activation checkpointing, on SPPO's loss with hard labels; each in a process of its own, one after another. Their losses
must agree (TRL's is twice ours), or nothing is reported. The reference's log-probabilities are computed before
training, which is not timed.

The model is narrow and deep and shares its embedding with its head: the wider and shallower it is, the more of time and
memory is the head's and the optimizer's, in which packed and padded do not differ.

Useful tokens are those of prompts and responses, without padding; a prompt counts once for each of its two responses,
as it is fed. Time runs from the end of the first step to that of the last, by the clock; "CPU s" is the processor time
of all threads (on CUDA it says little). Peak is the highest resident memory of the process (VmHWM), on CUDA the highest
allocated device memory; "above start" is the same less what was taken before the trainer was made, when model and
libraries were loaded.

Other work on the machine disturbs the clock, and the processor time too, since threads spin while they wait for each
other: use a quiet machine, or several ``--rounds`` with OMP_WAIT_POLICY=passive in the environment.

TRL runs where it can be imported, by another interpreter if ``--trl-python`` names one. Without Triton (on CPU) its
output head falls back to plain torch; the share of its time that this takes is measured and printed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
VOCABULARY, MAX_LENGTH, PAIRS, BETA = 32_768, 512, 4, 0.1
LLAMA = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 6}
END, PAD = "</s>", "<pad>"

# -------------------------------------------------------------------------------------------------------- the same data


def judged(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def tokenizer_folder(data: Path) -> Path:
    """A byte-BPE trained on all texts of the data, kept in the system's temporary folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    name = hashlib.sha256(data.read_bytes() + str(VOCABULARY).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nashpo-bench-tokenizer-{name}"
    if not (folder / "tokenizer_config.json").exists():
        texts = [
            text for row in judged(data) for text in (row["prompt"], *(r["text"] for r in row["responses"].values()))
        ]
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END, PAD], show_progress=False)
        made = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=END, pad_token=PAD)
        made.save_pretrained(folder)
    return folder


def token_pairs(data: Path, tokenizer: Any, count: int) -> list[dict[str, list[int]]]:
    """The best and the worst judged response of ``count`` prompts in a fixed random order, cut to ``MAX_LENGTH``."""
    import numpy as np

    rows = list(judged(data))
    result: list[dict[str, list[int]]] = []
    for i in np.random.default_rng(0).permutation(len(rows)):
        ranked = sorted(rows[i]["responses"].values(), key=lambda response: response["p_beats_baseline"])
        prompt = tokenizer(rows[i]["prompt"] + "\n\n")["input_ids"]
        room = MAX_LENGTH - len(prompt)
        best, worst = (
            [*tokenizer(r["text"])["input_ids"], tokenizer.eos_token_id][:room] for r in (ranked[-1], ranked[0])
        )
        if best != worst and room > 0:
            result.append({"prompt": prompt, "chosen": best, "rejected": worst})
        if len(result) == count:
            return result
    raise SystemExit(f"{data} has {len(result)} usable pairs of the {count} that --steps asks for")


def useful(pair: Mapping[str, list[int]]) -> int:
    return 2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"])


def padded(pairs: Sequence[Mapping[str, list[int]]]) -> int:
    """Tokens of one batch with padding."""
    return 2 * len(pairs) * max(len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])) for p in pairs)


# --------------------------------------------------------------------------------------------- one variant, one process


@dataclass(frozen=True)
class Measured:
    """Of one variant: seconds of each step but the first, by the clock and of this process on all cores, losses of all
    steps, bytes, and the head's share of time."""

    seconds: list[float]
    cpu_seconds: list[float]
    losses: list[float]
    peak: int
    start: int
    head_share: float | None
    parameters: int
    device: str
    threads: int
    versions: dict[str, str]


def host_memory(field: str) -> int:
    """``VmHWM`` or ``VmRSS`` of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux")


def llama(tokenizer: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True, **LLAMA, **ids
    )
    return LlamaForCausalLM(config).float()


def common(folder: str, steps: int, cpu: bool) -> dict[str, Any]:
    """Training arguments that all trainers get."""
    return {
        "output_dir": folder,
        "use_cpu": cpu,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": PAIRS,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": PAIRS,
        "beta": BETA,
        "max_length": MAX_LENGTH,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def our_trainer(packed: bool, model: Any, tokenizer: Any, pairs: Any, arguments: dict[str, Any]) -> Any:
    from nashpo.llm.config import SelfPlayConfig
    from nashpo.llm.trainer import SelfPlayTrainer

    args = SelfPlayConfig(loss_type="sppo_hard", padding_free=packed, **arguments)
    return SelfPlayTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)


def trl_trainer(model: Any, tokenizer: Any, pairs: Any, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        """Given token ids, so that there is nothing to prepare."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return OnTokens(
        model=model,
        args=DPOConfig(loss_type=["sppo_hard"], **arguments),
        train_dataset=Dataset.from_list([{f"{name}_ids": ids for name, ids in pair.items()} for pair in pairs]),
        processing_class=tokenizer,
    )


def no_function() -> Any:
    return None


def trl_head() -> Any:
    from trl.kernels import chunked_logprob

    return getattr(chunked_logprob, "ChunkedLogProbFunction", None)


@dataclass(frozen=True)
class Variant:
    title: str
    trainer: Callable[..., Any]
    loss_factor: float = 1.0
    """Of the loss, in units of the mean over a pair."""
    head: Callable[[], Any] = no_function
    """The autograd function of its output head, whose time is taken."""
    speed_target: float | None = None
    """Our packed form is to be this many times as fast."""
    peak_target: float | None = None


PACKED, PADDED, TRL = "packed", "padded", "trl"
VARIANTS = {
    PACKED: Variant("ours, packed", partial(our_trainer, True)),
    PADDED: Variant("ours, padded, chunked", partial(our_trainer, False), speed_target=1.5, peak_target=0.75),
    TRL: Variant("TRL sppo_hard", trl_trainer, 2.0, trl_head, speed_target=3.0, peak_target=0.4),
}


class Clock:
    """Seconds inside forward and backward of an autograd function, while training."""

    def __init__(self, function: Any) -> None:
        self.seconds = 0.0
        if function is not None:
            function.forward = staticmethod(self._timed(function.forward))
            function.backward = staticmethod(self._timed(function.backward))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return run


def measure(variant: Variant, work: Path, steps: int, cpu: bool) -> Measured:
    """Train, in this process."""
    import torch
    import transformers
    from transformers import AutoTokenizer, TrainerCallback

    cuda = torch.cuda.is_available() and not cpu
    task = json.loads((work / "task.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(task["tokenizer"])
    model = llama(tokenizer)
    if cuda:
        model.to("cuda")
    head = None if cuda else variant.head()  # kernels run on after their call returns, so calls say nothing there
    clock = Clock(head)
    ends: list[float] = []
    cpu_ends: list[float] = []
    in_head: list[float] = []

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            cpu_ends.append(time.process_time())
            in_head.append(clock.seconds)

    with tempfile.TemporaryDirectory() as folder:
        start = torch.cuda.memory_allocated() if cuda else host_memory("VmRSS")
        trainer = variant.trainer(model, tokenizer, task["pairs"], common(folder, steps, not cuda))
        trainer.add_callback(Ends())
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if cuda else host_memory("VmHWM")
    losses = [entry["loss"] / variant.loss_factor for entry in trainer.state.log_history if "loss" in entry]
    if len(ends) != steps or len(losses) != steps:
        raise SystemExit(f"{variant.title} took {len(ends)} steps and logged {len(losses)} losses, not {steps}")
    share = (in_head[-1] - in_head[0]) / (ends[-1] - ends[0]) if head is not None else None
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if "trl" in sys.modules:
        versions["trl"] = sys.modules["trl"].__version__
    return Measured(
        seconds=[after - before for before, after in zip(ends, ends[1:])],
        cpu_seconds=[after - before for before, after in zip(cpu_ends, cpu_ends[1:])],
        losses=losses,
        peak=peak,
        start=start,
        head_share=share,
        parameters=sum(p.numel() for p in model.parameters()),
        device=torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        threads=torch.get_num_threads(),
        versions=versions,
    )


def in_child(python: str, name: str, work: Path, steps: int, cpu: bool) -> Measured:
    command = [
        python,
        __file__,
        "--child",
        name,
        "--work",
        str(work),
        "--steps",
        str(steps),
        *(["--cpu"] if cpu else []),
    ]
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{VARIANTS[name].title} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Measured(**json.loads((work / f"{name}.json").read_text()))


def has_trl(python: str) -> bool:
    code = "from importlib.util import find_spec as f; raise SystemExit(not (f('trl') and f('datasets')))"
    return subprocess.run([python, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """A variant, and our packed form in units of it: times as fast, and shares of its memory."""

    variant: str
    tokens_per_s: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    peak_mib: float
    above_start_mib: float
    last_loss: float
    speed: float | None = None
    cpu_speed: float | None = None
    speed_target: float | None = None
    peak: float | None = None
    peak_target: float | None = None
    above_start: float | None = None
    met: bool | None = None


def best_of(rounds: Sequence[Measured]) -> Measured:
    """The shortest time of each step and the largest memory of several runs of one variant."""
    seconds = [min(times) for times in zip(*(r.seconds for r in rounds))]
    cpu_seconds = [min(times) for times in zip(*(r.cpu_seconds for r in rounds))]
    largest = max(rounds, key=lambda r: r.peak)
    return Measured(
        **{**asdict(largest), "seconds": seconds, "cpu_seconds": cpu_seconds, "start": min(r.start for r in rounds)}
    )


def rows_of(found: Mapping[str, Measured], tokens: Sequence[int]) -> list[Row]:
    ours, rows = found[PACKED], []
    for name, m in found.items():
        variant, total = VARIANTS[name], sum(m.seconds)
        ratios: dict[str, Any] = {}
        if variant.speed_target is not None and variant.peak_target is not None:
            speed, peak = total / sum(ours.seconds), ours.peak / m.peak
            ratios = {
                "speed": speed,
                "cpu_speed": sum(m.cpu_seconds) / sum(ours.cpu_seconds),
                "speed_target": variant.speed_target,
                "peak": peak,
                "peak_target": variant.peak_target,
                "above_start": (ours.peak - ours.start) / (m.peak - m.start),
                "met": speed >= variant.speed_target and peak <= variant.peak_target,
            }
        rows.append(
            Row(
                variant.title,
                sum(tokens[1:]) / total,
                total / len(m.seconds),
                sum(m.cpu_seconds) / len(m.cpu_seconds),
                m.peak / 2**20,
                (m.peak - m.start) / 2**20,
                m.losses[-1],
                **ratios,
            )
        )
    return rows


def check_losses(found: Mapping[str, Measured]) -> None:
    """All variants must have trained alike: rounding, amplified by AdamW over a few steps, is far below 1e-3."""
    for name, m in found.items():
        for step, (loss, other) in enumerate(zip(m.losses, found[PACKED].losses)):
            if not math.isclose(loss, other, rel_tol=1e-3):
                raise SystemExit(f"{VARIANTS[name].title} has loss {loss:g} in step {step}, our packed form {other:g}")


def table(rows: Sequence[Row]) -> str:
    numbers = ("tokens/s", "s/step", "CPU s", "peak MiB", "above start", "last loss")
    ours = ("times as fast", "CPU", "peak share", "above start", "met")
    head = f"{'variant':22}{''.join(f'{name:>12}' for name in numbers)} |{''.join(f'{name:>15}' for name in ours)}"
    lines = [f"{'':94} | our packed form in units of the row (goal)", head, "-" * len(head)]
    for r in rows:
        line = f"{r.variant:22}{r.tokens_per_s:12,.0f}{r.seconds_per_step:12.3f}{r.cpu_seconds_per_step:12.3f}"
        line += f"{r.peak_mib:12,.0f}{r.above_start_mib:12,.0f}{r.last_loss:12.4f} |"
        if r.speed is not None:
            cells = (
                f"{r.speed:.2f} (>= {r.speed_target:g})",
                f"{r.cpu_speed:.2f}",
                f"{r.peak:.2f} (<= {r.peak_target:g})",
                f"{r.above_start:.2f}",
                "yes" if r.met else "NO",
            )
            line += "".join(f"{cell:>15}" for cell in cells)
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A training step: useful tokens/s and peak memory, ratios of one run.")
    parser.add_argument("--steps", type=int, default=5, help="steps of each variant, the first not timed (default 5)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each variant, in turns; the best time of a step")
    parser.add_argument("--cpu", action="store_true", help="on CPU although there is a GPU")
    parser.add_argument("--data", type=Path, default=DATA, help="judged responses (default: %(default)s)")
    parser.add_argument("--trl-python", metavar="FILE", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    parser.add_argument("--child", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child = measure(VARIANTS[options.child], options.work, options.steps, options.cpu)
        (options.work / f"{options.child}.json").write_text(json.dumps(asdict(child)))
        return 0
    if options.steps < 2 or options.rounds < 1:
        parser.error("--steps must be at least 2 (the first is not timed) and --rounds at least 1")
    if not options.data.exists():
        parser.error(f"no file {options.data}: give the judged responses by --data")

    from transformers import AutoTokenizer

    folder = tokenizer_folder(options.data)
    pairs = token_pairs(options.data, AutoTokenizer.from_pretrained(folder), PAIRS * options.steps)
    batches = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
    tokens = [sum(map(useful, batch)) for batch in batches]
    names = [PACKED, PADDED] + ([TRL] if has_trl(options.trl_python) else [])
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "task.json").write_text(json.dumps({"tokenizer": str(folder), "pairs": pairs}))
        for _ in range(options.rounds):
            for name in names:
                python = options.trl_python if name == TRL else sys.executable
                runs[name].append(in_child(python, name, Path(work), options.steps, options.cpu))
    found = {name: best_of(several) for name, several in runs.items()}
    check_losses(found)
    rows = rows_of(found, tokens)
    ours, share = found[PACKED], sum(tokens) / sum(map(padded, batches))
    print(f"Llama of {ours.parameters / 1e6:.1f} M parameters, {VOCABULARY:,} tokens vocabulary, on {ours.device}")
    mean = sum(tokens[1:]) / len(tokens[1:])
    print(f"{PAIRS} pairs a step, {len(tokens) - 1} timed steps of {mean:,.0f} useful tokens on average;", end=" ")
    print(f"useful / padded tokens {share:.2f}\n")
    print(table(rows))
    if TRL not in names:
        print(f"\nTRL was left out: {options.trl_python} has no trl and datasets (see --trl-python)")
    elif (head := found[TRL].head_share) is not None:
        print(f"\nTRL {found[TRL].versions['trl']}: {head:.0%} of its time on CPU is its output head without Triton")
    if options.json:
        content = {
            "rows": [asdict(r) for r in rows],
            "useful_over_padded": share,
            "useful_tokens": tokens,
            "measured": {name: asdict(m) for name, m in found.items()},
        }
        Path(options.json).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 0 if all(r.met is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
