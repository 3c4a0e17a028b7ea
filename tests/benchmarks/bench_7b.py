"""Mistral-7B on one GPU: log-probabilities, LoRA step, full step with RMSprop and sampling, beside what is usual.

    python tests/benchmarks/bench_7b.py [--work FOLDER] [--json FILE] [--only NAME …] [--budget SECONDS] [--tiny]
                                        [--trl-python FILE]

The model has Mistral-7B's shapes and random weights made on the device; nothing is downloaded. Every measurement is a
process of its own that writes its result to the work folder; one that is there is not made again. A run begins no
measurement after ``--budget`` seconds (default 420, so that a run stays below 10 minutes): give the same command again
until none is left. It ends with 0 if every goal is met, 1 if one is not or a measurement failed, 3 if some are left.

Forms: ``ours`` packs the responses of all prompts into one row, prompts shared; ``naive`` pads rows to one length, 4
prompts at a time, and makes all logits; ``TRL`` is DPOTrainer with loss ``sppo_hard``, where it can be imported, by
another interpreter if ``--trl-python`` names one. All get the same random token ids with the lengths that
`nashpo.llm.scale_runs.ASSUMED` has, two responses per prompt. Losses of all forms must agree, or nothing is reported.
"128k" is our form with a vocabulary of 128,256; "nothing recomputed" is a smaller batch without checkpointing.

Tokens are prompts and responses without padding, a prompt once per response; of samples, drawn tokens. MFU has the
FLOPs of these tokens (2 N forward, 4 N LoRA, 6 N full, and attention; of shared prompts once; nothing recomputed),
over the dense bf16 peak of the GPU. Time runs from the end of the first step or pass to that of the last. Peak is the
highest allocated device memory, on CPU the highest resident memory of the process. "model" is what `nashpo.llm.scale`
predicts. Random weights end a response with one of so many tokens that lengths are spread as a geometric distribution.

``--tiny`` runs everything with tiny shapes on CPU: it tries the program and measures nothing of worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from nashpo.llm.flops import SHAPES, Batch, Shape, forward_flops, packed, recomputed_flops, shared, training_flops
from nashpo.llm.hardware import GIB, HARDWARE, Cluster, Hardware, recognized
from nashpo.llm.lengths import Lengths
from nashpo.llm.scale import Fit, scoring, training
from nashpo.llm.scale_memory import sampling_memory, scoring_memory, training_memory
from nashpo.llm.scale_runs import ASSUMED
from nashpo.llm.scale_sampling import EAGER, Sampler, sampling

BETA, RATE, RANK, NAIVE_PROMPTS, SAMPLE_K = 0.1, 1e-5, 16, 4, 5
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
AGREE = 0.02
"""Losses may differ by this share: bf16 has 3 digits, and steps amplify what is rounded."""


@dataclass(frozen=True)
class Scale:
    """Sizes of a run: steps that are timed after the first, and tokens of one batch."""

    shape: Shape
    wide: int
    """Entries of the larger vocabulary."""
    lengths: Lengths
    tokens: int
    full_tokens: int
    kept_tokens: int
    steps: int
    samples: int
    """Prompts that are sampled to."""
    longest: int
    ending: int
    """Tokens that end a response, each drawn about once in a vocabulary."""
    batch: int


LARGE = Scale(SHAPES["mistral-7b"], 128_256, ASSUMED, 32_768, 16_384, 8_192, 4, 64, 1024, 67, 64)
TINY = Scale(Shape(2, 64, 4, 2, 16, 160, 512), 1024, Lengths((4, 9, 14), (3, 8, 20)), 256, 256, 128, 2, 3, 12, 64, 8)

Found = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One process. ``run`` is called in it with the sizes and the device."""

    title: str
    form: str
    run: Callable[[Scale, Any], Found]
    goal: float | None = None
    """Least MFU."""


def rows_of(scale: Scale, tokens: int) -> list[tuple[int, Sequence[int]]]:
    """As many prompts with two responses each as have about so many tokens."""
    each = 2 * (scale.lengths.prompt + scale.lengths.response)
    return list(scale.lengths.rows(max(2, round(tokens / each)), 2))


def token_rows(scale: Scale, tokens: int, batches: int) -> list[list[dict[str, list[int]]]]:
    """Random ids for `rows_of`, other ones in every batch."""
    import random

    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, scale.shape.vocabulary) for _ in range(count)]

    return [
        [
            {"prompt": ids(p), "chosen": ids(first), "rejected": ids(second)}
            for p, (first, second) in rows_of(scale, tokens)
        ]
        for _ in range(batches)
    ]


def wide(scale: Scale) -> Scale:
    return replace(scale, shape=replace(scale.shape, vocabulary=scale.wide))


def mistral(scale: Scale, device: Any, dtype: Any) -> Any:
    """Random weights, made where they stay."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    shape = scale.shape
    config = MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=32_768,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------------------------------------------------- one process


class Clock:
    """Ends of steps, with all kernels done."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.ends: list[float] = []

    def tick(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of one step, the first left out."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def peak_memory(device: Any) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("/proc/self/status has no VmHWM: this benchmark needs Linux")


def sequences_of(batch: Sequence[Mapping[str, list[int]]]) -> list[Any]:
    from nashpo.llm.responses import Scored

    return [Scored.completion(row["prompt"], row[name]) for row in batch for name in ("chosen", "rejected")]


def naive_logprobs(model: Any, batch: Sequence[Mapping[str, list[int]]], device: Any) -> Any:
    """Padded rows, all logits, log-softmax, gather: (2 · prompts,)."""
    import torch

    rows = [(row["prompt"], row[name]) for row in batch for name in ("chosen", "rejected")]
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask, loss = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p) + len(r)] = torch.tensor([*p, *r], device=device)
        mask[i, : len(p) + len(r)] = 1
        loss[i, len(p) : len(p) + len(r)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (each * loss[:, 1:]).sum(-1)


def chunks(batch: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def logprobs(form: str, scale: Scale, device: Any) -> Found:
    """A pass without gradient in bf16."""
    import torch

    from nashpo.llm.fit import SharedPrefix

    model = mistral(scale, device, torch.bfloat16).eval()
    clock, sums, layout = Clock(device), [], SharedPrefix()
    with torch.no_grad(), layout.context(model) if form == "ours" else nullcontext():
        for batch in token_rows(scale, scale.tokens, scale.steps + 1):
            if form == "ours":
                found = layout.logprobs(model, sequences_of(batch))
            else:
                found = torch.cat([naive_logprobs(model, some, device) for some in chunks(batch, NAIVE_PROMPTS)])
            sums.append(-float(found.double().mean()))
            clock.tick()
    return {"seconds": clock.seconds(), "losses": sums}


def arguments(folder: str, prompts: int, steps: int, device: Any, checkpointed: bool, **more: Any) -> dict[str, Any]:
    """Training arguments that both trainers get."""
    from nashpo.llm.config import checkpointing

    return {
        "output_dir": folder,
        "use_cpu": device.type == "cpu",
        "bf16": True,
        "per_device_train_batch_size": prompts,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": prompts,
        "beta": BETA,
        "max_length": None,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "rmsprop",
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **checkpointing(checkpointed, **({"use_reentrant": False} if checkpointed else {})),
        **more,
    }


def tokenizer() -> Any:
    """Trainers ask for one, and have nothing to tokenize."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR, task_type="CAUSAL_LM")


def ours(model: Any, batches: list[list[Any]], folder: str, device: Any, lora: bool, checkpointed: bool) -> Any:
    from nashpo.llm.config import SelfPlayConfig
    from nashpo.llm.trainer import SelfPlayTrainer

    made = arguments(folder, len(batches[0]), len(batches), device, checkpointed, loss_type="sppo_hard")
    rows = [row for batch in batches for row in batch]
    return SelfPlayTrainer(
        model,
        args=SelfPlayConfig(**made),
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=adapters() if lora else None,
    )


def trl(model: Any, batches: list[list[Any]], folder: str, device: Any, lora: bool, checkpointed: bool) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        """Given token ids, so that there is nothing to prepare."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    # TRL pads: the whole batch at one time would not fit, so that it gets the naive form's micro-batches.
    steps = -(-len(batches[0]) // NAIVE_PROMPTS)
    more = {
        "loss_type": ["sppo_hard"],
        "gradient_accumulation_steps": steps,
        "per_device_train_batch_size": NAIVE_PROMPTS,
    }
    made = arguments(folder, NAIVE_PROMPTS, len(batches), device, checkpointed, **more)
    whole = [row for batch in batches for row in batch[: steps * NAIVE_PROMPTS]]
    return OnTokens(
        model=model,
        args=DPOConfig(**made),
        train_dataset=Dataset.from_list([{f"{name}_ids": ids for name, ids in row.items()} for row in whole]),
        processing_class=tokenizer(),
        peft_config=adapters() if lora else None,
    )


def trained(
    make: Callable[..., Any], factor: float, lora: bool, tokens: str, checkpointed: bool, scale: Scale, device: Any
) -> Found:
    """Steps of a trainer; its loss is ``factor`` times ours."""
    import torch
    from transformers import TrainerCallback

    model = mistral(scale, device, torch.bfloat16 if lora else torch.float32)
    batches = whole_batches(scale, getattr(scale, tokens))
    clock = Clock(device)

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        trainer = make(model, batches, folder, device, lora, checkpointed)
        trainer.add_callback(Ends())
        trainer.train()
    losses = [entry["loss"] / factor for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock.seconds(), "losses": losses}


def whole_batches(scale: Scale, tokens: int) -> list[list[dict[str, list[int]]]]:
    """Batches whose prompts are a multiple of the naive form's."""
    made = token_rows(scale, tokens, scale.steps + 1)
    return [batch[: max(NAIVE_PROMPTS, len(batch) // NAIVE_PROMPTS * NAIVE_PROMPTS)] for batch in made]


def naive_steps(lora: bool, tokens: str, scale: Scale, device: Any) -> Found:
    """A plain loop: padded micro-batches, all logits, the same loss, checkpointing and optimizer."""
    import torch

    model = mistral(scale, device, torch.bfloat16 if lora else torch.float32)
    if lora:
        from peft import get_peft_model

        model = get_peft_model(model, adapters())
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    optimizer = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], lr=RATE)
    clock, losses = Clock(device), []
    batches = whole_batches(scale, getattr(scale, tokens))
    lower = partial(torch.autocast, device.type, torch.bfloat16)
    with torch.no_grad(), lower():
        known = [[naive_logprobs(model, some, device) for some in chunks(batch, NAIVE_PROMPTS)] for batch in batches]
    for batch, reference in zip(batches, known, strict=True):
        total = 0.0
        for some, base in zip(chunks(batch, NAIVE_PROMPTS), reference, strict=True):
            with lower():
                found = naive_logprobs(model, some, device)
            chosen, rejected = (found - base).view(-1, 2).unbind(-1)
            half = 0.5 / BETA
            loss = ((chosen - half).square() + (rejected + half).square()).sum() / 2 / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        clock.tick()
    return {"seconds": clock.seconds(), "losses": losses}


def sampled(continuous: bool, scale: Scale, device: Any) -> Found:
    """One shard, after a small one that is not timed."""
    import torch
    from transformers.generation import configuration_utils

    from nashpo.llm.engines.config import ContinuousConfig, TransformersConfig
    from nashpo.llm.engines.engine import EngineContext
    from nashpo.llm.engines.sampler import _InMemory
    from nashpo.llm.prompts import Prompt

    model = mistral(scale, device, torch.bfloat16).eval()
    settings: dict[str, Any] = {"K": SAMPLE_K, "max_new_tokens": scale.longest}
    options = {f.name for f in fields(configuration_utils.ContinuousBatchingConfig)}
    page = "page_size" if "page_size" in options else "block_size"
    bounded = {page: 16, "num_blocks": 64, "max_batch_tokens": 256} if device.type == "cpu" else {}
    config: Any = (
        ContinuousConfig(**settings, options=bounded)
        if continuous
        else TransformersConfig(**settings, batch_size=scale.batch)
    )
    ending = tuple(range(3, 3 + scale.ending))
    context = EngineContext(None, ending, 0, scale.shape.vocabulary, device, lambda count: None)
    engine = config.build(context)
    import random

    draw = random.Random(0)
    asked = []
    for b in range(scale.samples + 2):
        count = round(scale.lengths.prompts[b % len(scale.lengths.prompts)])
        ids = [draw.randrange(3 + scale.ending, scale.shape.vocabulary) for _ in range(count)]
        asked.append(Prompt.of(ids, ids))
    policy, clock = _InMemory([(1.0, lambda: nullcontext(model))]), Clock(device)
    engine.sample(policy, asked[:2], 0)
    clock.tick()
    found = engine.sample(policy, asked[2:], 1)
    clock.tick()
    return {"seconds": clock.seconds(), "responses": [len(c.ids) for row in found for c in row]}


def steps(
    make: Callable[..., Any], factor: float = 1.0, lora: bool = True, tokens: str = "tokens", checkpointed: bool = True
) -> Callable[[Scale, Any], Found]:
    return partial(trained, make, factor, lora, tokens, checkpointed)


MEASUREMENTS = {
    "logprobs": Measurement("log-probabilities", "ours", partial(logprobs, "ours"), 0.60),
    "logprobs-naive": Measurement("log-probabilities", "naive", partial(logprobs, "naive")),
    "logprobs-128k": Measurement("log-probabilities", "ours, 128k", lambda s, d: logprobs("ours", wide(s), d)),
    "lora": Measurement("LoRA step", "ours", steps(ours), 0.50),
    "lora-naive": Measurement("LoRA step", "naive", partial(naive_steps, True, "tokens")),
    "lora-trl": Measurement("LoRA step", "TRL", steps(trl, 2.0)),
    "lora-128k": Measurement("LoRA step", "ours, 128k", lambda s, d: steps(ours)(wide(s), d)),
    "lora-kept": Measurement("LoRA, nothing recomputed", "ours", steps(ours, tokens="kept_tokens", checkpointed=False)),
    "full": Measurement("full step, RMSprop", "ours", steps(ours, lora=False, tokens="full_tokens"), 0.45),
    "full-naive": Measurement("full step, RMSprop", "naive", partial(naive_steps, False, "full_tokens")),
    "full-trl": Measurement("full step, RMSprop", "TRL", steps(trl, 2.0, lora=False, tokens="full_tokens")),
    "sampling": Measurement("sampling", "continuous", partial(sampled, True)),
    "sampling-generate": Measurement("sampling", "generate", partial(sampled, False)),
}


def child(name: str, scale: Scale, work: Path, cpu: bool) -> None:
    """Measure and write."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    try:
        found = MEASUREMENTS[name].run(scale, device)
    except torch.OutOfMemoryError:
        found = {"error": "out of memory"}
    found |= {
        "peak": peak_memory(device),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "memory": torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else 0,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__}
        | ({"trl": sys.modules["trl"].__version__} if "trl" in sys.modules else {}),
        "date": time.strftime("%Y-%m-%d"),
    }
    aside = work / f"{name}.part"
    aside.write_text(json.dumps(found))
    aside.replace(work / f"{name}.json")


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """A measurement beside its prediction; ``slower`` is its time in units of our form's."""

    name: str
    what: str
    form: str
    tokens_per_s: float | None
    predicted_tokens_per_s: float
    mfu: float | None
    mfu_goal: float | None
    peak_gib: float
    predicted_gib: float | None
    slower: float | None = None
    error: str | None = None


def predicted(name: str, scale: Scale, found: Found, chip: Hardware) -> tuple[float, float, float | None, float | None]:
    """Useful tokens, FLOPs that count, and seconds and bytes by the model."""
    cluster = Cluster(chip)
    if name.startswith("sampling"):
        lengths = Lengths(scale.lengths.prompts, tuple(found.get("responses", [scale.longest])))
        sampler = Sampler(prefix=False, overhead=EAGER)
        if name == "sampling-generate":
            sampler = Sampler(slots=scale.batch, continuous=False, prefix=False, overhead=EAGER)
        made = sampling(scale.shape, lengths, scale.samples, SAMPLE_K, cluster, sampler)
        memory = sum(sampling_memory(scale.shape, lengths, sampler, chip).values())
        return sum(found.get("responses", [])), made.flops, made.seconds, memory if "generate" in name else None
    size = wide(scale) if name.endswith("128k") else scale
    if name.startswith("logprobs"):
        rows = rows_of(size, size.tokens)
        batch = layout_of(name)(size.shape, rows)
        flops = forward_flops(size.shape, batch)
        return (
            batch.useful,
            flops,
            scoring(size.shape, batch, cluster).seconds,
            sum(scoring_memory(size.shape, batch.tokens).values()),
        )
    lora = name.startswith("lora")
    tokens = size.kept_tokens if name == "lora-kept" else size.tokens if lora else size.full_tokens
    rows = rows_of(size, tokens)
    rows = rows[: max(NAIVE_PROMPTS, len(rows) // NAIVE_PROMPTS * NAIVE_PROMPTS)]
    batch = layout_of(name)(size.shape, rows)
    fit = fit_of(name, batch)
    seconds = training(size.shape, batch, fit, cluster).seconds
    memory = sum(training_memory(size.shape, fit).values())
    return batch.useful, training_flops(size.shape, batch, fit.rank), seconds, memory


def layout_of(name: str) -> Callable[[Shape, Sequence[tuple[int, Sequence[int]]]], Batch]:
    """Ours computes a prompt once; what others compute of use is the packed form."""
    return packed if name.endswith(("naive", "trl")) else shared


def fit_of(name: str, batch: Batch) -> Fit:
    if name.startswith("full"):
        return Fit(states=4, micro=batch.tokens)
    return Fit(weight=2, states=4, micro=batch.tokens, rank=RANK, autocast=False, checkpointing=name != "lora-kept")


def rows_table(measured: Mapping[str, Found], scale: Scale, chip: Hardware, known: bool) -> list[Row]:
    rows = []
    for name, found in measured.items():
        what = MEASUREMENTS[name]
        tokens, flops, took, memory = predicted(name, scale, found, chip)
        assert took is not None
        seconds = found.get("seconds")
        first = next((other for other in MEASUREMENTS if MEASUREMENTS[other].title == what.title), name)
        base = measured.get(first, {}).get("seconds")
        compared = seconds is not None and base is not None and first != name and "128k" not in name
        mfu = flops / seconds / chip.peak if seconds and known and not name.startswith("sampling") else None
        rows.append(
            Row(
                name,
                what.title,
                what.form,
                tokens / seconds if seconds else None,
                tokens / took,
                mfu,
                what.goal,
                found["peak"] / GIB,
                None if memory is None or what.form in ("naive", "TRL") else memory / GIB,
                per_token(seconds, tokens, base, first, scale, measured, chip) if compared else None,
                found.get("error"),
            )
        )
    return rows


def per_token(
    seconds: float, tokens: float, base: float, first: str, scale: Scale, measured: Mapping[str, Found], chip: Hardware
) -> float:
    """Seconds per useful token in units of the first form's."""
    return seconds / tokens / (base / predicted(first, scale, measured[first], chip)[0])


def check_losses(measured: Mapping[str, Found]) -> None:
    """All forms must have computed alike."""
    for title in dict.fromkeys(m.title for m in MEASUREMENTS.values()):
        group = {n: f["losses"] for n, f in measured.items() if MEASUREMENTS[n].title == title and f.get("losses")}
        group = {n: losses for n, losses in group.items() if "128k" not in n}
        for name, losses in group.items():
            first = next(iter(group.values()))
            if any(abs(a - b) > AGREE * abs(b) for a, b in zip(losses, first, strict=True)):
                raise SystemExit(f"{name} has losses {losses}, {next(iter(group))} {first}: nothing is reported")


def table(rows: Sequence[Row]) -> str:
    head = f"{'':25}{'':12}{'tokens/s':>10}{'model':>9}{'MFU':>6}{'goal':>6}{'peak GiB':>10}{'model':>8}{'slower':>8}"
    lines = [head, "-" * len(head)]
    for r in rows:
        cells = [
            r.error or (f"{r.tokens_per_s:,.0f}" if r.tokens_per_s else "-"),
            f"{r.predicted_tokens_per_s:,.0f}" if r.predicted_tokens_per_s < 1e7 else f"{r.predicted_tokens_per_s:.1e}",
            "-" if r.mfu is None else f"{r.mfu:.0%}",
            "" if r.mfu_goal is None else f"{r.mfu_goal:.0%}",
            f"{r.peak_gib:,.1f}",
            "-" if r.predicted_gib is None else f"{r.predicted_gib:,.1f}",
            "" if r.slower is None else f"{r.slower:.2f} x",
        ]
        widths = (10, 9, 6, 6, 10, 8, 8)
        lines.append(f"{r.what:25}{r.form:12}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def efficiency(rows: Sequence[Row], measured: Mapping[str, Found], scale: Scale, chip: Hardware) -> dict[str, float]:
    """Shares of peak for `nashpo.llm.hardware.Efficiency`: recomputation counted as work."""
    found = {r.name: r for r in rows if r.mfu is not None}
    shares = {}
    if "logprobs" in found and found["logprobs"].mfu is not None:
        shares["forward"] = found["logprobs"].mfu
    if "full" in found:
        size = rows_of(scale, scale.full_tokens)
        batch = shared(scale.shape, size[: len(size) // NAIVE_PROMPTS * NAIVE_PROMPTS])
        work = training_flops(scale.shape, batch) + recomputed_flops(scale.shape, batch)
        shares["training"] = work / measured["full"]["seconds"] / chip.peak
    return shares


def has_trl(python: str) -> bool:
    code = "from importlib.util import find_spec as f; raise SystemExit(not (f('trl') and f('datasets')))"
    return subprocess.run([python, "-c", code]).returncode == 0


def measure_all(options: argparse.Namespace, names: Sequence[str], scale: Scale, begin: float) -> dict[str, Found]:
    """What is in the work folder, and what there was time to add to it."""
    for name in names:
        result = options.work / f"{name}.json"
        if result.exists():
            continue
        if time.monotonic() - begin > options.budget:
            break
        print(f"{time.monotonic() - begin:5.0f} s: {name}", file=sys.stderr, flush=True)
        python = options.trl_python if name.endswith("trl") else sys.executable
        command = [
            python,
            __file__,
            "--child",
            name,
            "--work",
            str(options.work),
            *(["--tiny"] if options.tiny else []),
        ]
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not result.exists():
            (options.work / f"{name}.log").write_text(done.stdout + done.stderr)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{name} failed ({last}); its output is in {options.work / name}.log", file=sys.stderr)
    return {
        n: json.loads((options.work / f"{n}.json").read_text()) for n in names if (options.work / f"{n}.json").exists()
    }


def report(measured: Mapping[str, Found], scale: Scale, options: argparse.Namespace) -> bool:
    """Print the table, write the JSON; whether every goal is met."""
    check_losses(measured)
    some = next(iter(measured.values()))
    seen = recognized(some["device"], some["memory"])
    chip = seen or HARDWARE["h200"]
    rows = rows_table(measured, scale, chip, known=seen is not None)
    versions = {k: v for found in measured.values() for k, v in found["versions"].items()}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{scale.shape.parameters / 1e9:.2f} B parameters on {some['device']}, {some['date']}; {shown}")
    print(f'"model" is for {chip.name}{"" if seen else ", which this is not: nothing here can be held against it"}\n')
    print(table(rows))
    met = all(r.mfu is None or r.mfu_goal is None or r.mfu >= r.mfu_goal for r in rows)
    extra = {
        kind: (measured[f"{kind}-128k"]["peak"] - measured[kind]["peak"]) / GIB
        for kind in ("logprobs", "lora")
        if kind in measured and f"{kind}-128k" in measured
    }
    for kind, gib in extra.items():
        tokens = scale.tokens
        print(f"\na vocabulary of {scale.wide:,} adds {gib:.2f} GiB to the peak of {kind} at {tokens:,} tokens (< 3)")
        met &= gib < 3
    if options.json:
        content = {
            "rows": [asdict(r) for r in rows],
            "efficiency": efficiency(rows, measured, scale, chip),
            "extra_gib_128k": extra,
            "measured": dict(measured),
        }
        Path(options.json).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return met and not any(r.error for r in rows)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Mistral-7B shapes on one GPU: tokens/s, MFU and peak memory.")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="of the results (default: in the temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="write everything to FILE as well")
    parser.add_argument(
        "--only", nargs="+", choices=list(MEASUREMENTS), metavar="NAME", help="these measurements alone"
    )
    parser.add_argument("--budget", type=float, default=420, help="seconds after which none is begun (default 420)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on CPU, to try the program")
    parser.add_argument("--trl-python", metavar="FILE", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--child", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    scale = TINY if options.tiny else LARGE
    kind = "tiny" if options.tiny else "7b"
    options.work = options.work or Path(tempfile.gettempdir()) / f"nashpo-bench-{kind}"
    options.work.mkdir(parents=True, exist_ok=True)
    if options.child:
        child(options.child, scale, options.work, options.tiny)
        return 0
    begin = time.monotonic()
    if not options.tiny:
        import torch

        if not torch.cuda.is_available():
            parser.error("there is no GPU here: --tiny tries the program on CPU")
    settings = options.work / "settings.json"
    own = json.dumps(asdict(scale), sort_keys=True)
    if settings.exists() and settings.read_text() != own:
        parser.error(f"{options.work} has measurements of other sizes: give another folder by --work")
    settings.write_text(own)
    names = list(options.only or MEASUREMENTS)
    if any(name.endswith("trl") for name in names) and not has_trl(options.trl_python):
        names = [name for name in names if not name.endswith("trl")]
        print(f"TRL is left out: {options.trl_python} has no trl and datasets (see --trl-python)")
    measured = measure_all(options, names, scale, begin)
    left = [name for name in names if name not in measured]
    met = report(measured, scale, options) if measured else False
    if left:
        print(f"\nleft: {', '.join(left)}; give the same command again")
        return 3
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
