"""Conversations rolled out turn by turn: continued from kept keys and values, and with the history read anew.

    python tests/benchmarks/bench_conversations.py [--prompts N] [--prompt N] [--turns N] [--new N] [--reply N]
        [--rounds N] [--json FILE]

A ~30 M-parameter Llama (that of bench_trainer.py) in fp32 on the CPU draws K = 4 conversations per prompt with
`TransformersEngine`: random prompts of 512 tokens, three answers of 128 tokens (there is no end token), 16 tokens of
the other side between them. "CPU" is the processor time of all threads, the shortest of all rounds, in which both take
turns; "read" counts the tokens that went through the model in calls of more than one column, padding among them; "kept"
is the most tokens whose keys and values were held. Both must draw the same conversations but for a few that rounding
decides; how many are the same is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from bench_trainer import LLAMA, VOCABULARY
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from nashpo.llm.engines.config import TransformersConfig
from nashpo.llm.engines.engine import EngineContext
from nashpo.llm.engines.local import TransformersEngine
from nashpo.llm.prompts import Prompt

K = 4
ANEW, KEPT = "read anew", "kept"


@dataclass(frozen=True)
class Lent:
    """A policy in memory."""

    model: nn.Module
    name: str = "policy"

    @property
    def parts(self) -> Any:
        return [(1.0, self.use)]

    @contextmanager
    def use(self) -> Iterator[nn.Module]:
        yield self.model

    def folder(self) -> Path:
        raise ValueError("this policy has no folder")


@dataclass(frozen=True)
class Measured:
    """Seconds of every turn by the clock and of the processor; tokens."""

    seconds: list[float]
    cpu_seconds: list[float]
    read: list[int]
    kept: int


def random_ids(count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    drawn = torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))
    return [tuple(row) for row in drawn.tolist()]


def measure(how: str, policy: Lent, options: argparse.Namespace) -> tuple[Measured, list[tuple[int, ...]]]:
    """One roll-out, and the conversations."""
    context = EngineContext(None, (), 0, None, torch.device("cpu"), lambda count: None)
    config = TransformersConfig(K=1, max_new_tokens=options.new, batch_size=options.batch)
    engine, columns = TransformersEngine(config, context), [0]

    def count(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        shape = inputs["input_ids"].shape
        columns[0] += shape.numel() if shape[1] > 1 else 0

    starts = random_ids(options.prompts, options.prompt, 0)
    going = [Prompt(f"{b}/{k}", "", ids) for b, ids in enumerate(starts) for k in range(K)]
    seconds, cpu, read, kept = [], [], [], 0
    with (
        policy.model.register_forward_pre_hook(count, with_kwargs=True),
        engine.keeping() if how == KEPT else nullcontext(),
    ):
        for turn in range(options.turns):
            columns[0], clock, processor = 0, time.perf_counter(), time.process_time()
            answers = engine.sample(policy, going, turn)
            cpu.append(time.process_time() - processor)
            seconds.append(time.perf_counter() - clock)
            read.append(columns[0])
            kept = max(kept, 0 if engine._prefixes is None else engine._prefixes.tokens)
            replies = random_ids(len(going), options.reply, turn + 1)
            going = [
                Prompt(f"{p.key}.{turn}", "", (*p.ids, *answer.ids, *reply))
                for p, (answer,), reply in zip(going, answers, replies, strict=True)
            ]
    return Measured(seconds, cpu, read, kept), [p.ids for p in going]


def table(found: dict[str, Measured]) -> str:
    turns = range(len(found[ANEW].read))
    lines = [f"{'':12}" + "".join(f"{f'turn {t + 1} CPU s':>15}" for t in turns) + f"{'all':>9}{'read':>10}{'kept':>9}"]
    for how, m in found.items():
        cells = "".join(f"{seconds:15.2f}" for seconds in m.cpu_seconds)
        lines.append(f"{how:12}{cells}{sum(m.cpu_seconds):9.2f}{sum(m.read):10,}{m.kept:9,}")
    anew, kept = found[ANEW], found[KEPT]
    ratios = [a / b for a, b in zip(anew.cpu_seconds, kept.cpu_seconds, strict=True)]
    cells = "".join(f"{ratio:15.2f}" for ratio in ratios)
    whole = sum(anew.cpu_seconds) / sum(kept.cpu_seconds)
    lines.append(f"{'ratio':12}{cells}{whole:9.2f}{sum(anew.read) / max(1, sum(kept.read)):10.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Conversations continued from kept keys and values, and read anew.")
    parser.add_argument("--prompts", type=int, default=4, help="prompts, of K = 4 conversations each (default 4)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt (default 512)")
    parser.add_argument("--turns", type=int, default=3, help="answers of a conversation (default 3)")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer (default 128)")
    parser.add_argument("--reply", type=int, default=16, help="tokens of the other side between answers (default 16)")
    parser.add_argument("--batch", type=int, default=64, help="most sequences generated at a time (default 64)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of both, in turns; the best counts (default 2)")
    parser.add_argument("--json", metavar="FILE", help="write what was measured to FILE as well")
    options = parser.parse_args(arguments)
    if any(value < 1 for name, value in vars(options).items() if name != "json"):
        parser.error("every number must be at least 1")

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True, **LLAMA, **ids)
    policy = Lent(LlamaForCausalLM(config).float())
    found: dict[str, Measured] = {}
    drawn: dict[str, list[tuple[int, ...]]] = {}
    for _ in range(options.rounds):
        for how in (ANEW, KEPT):
            one, drawn[how] = measure(how, policy, options)
            best = found.setdefault(how, one)
            for now, before in ((one.seconds, best.seconds), (one.cpu_seconds, best.cpu_seconds)):
                before[:] = [min(pair) for pair in zip(now, before, strict=True)]
    same = sum(a == b for a, b in zip(drawn[ANEW], drawn[KEPT], strict=True))
    parameters = sum(p.numel() for p in policy.model.parameters())
    print(f"Llama of {parameters / 1e6:.1f} M parameters, fp32, CPU, {torch.get_num_threads()} threads;", end=" ")
    print(f"torch {torch.__version__},\ntransformers {transformers.__version__};", end=" ")
    print(f"{options.prompts} prompts of {options.prompt} tokens, K = {K}, {options.turns} answers of {options.new},")
    print(f"replies of {options.reply}; best of {options.rounds} rounds; {same} of {len(drawn[KEPT])} the same\n")
    print(table(found))
    if options.json:
        content = {"options": vars(options), "same": same, "measured": {how: asdict(m) for how, m in found.items()}}
        Path(options.json).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
