"""The sampling phase: K responses of one policy to an iteration's prompts, in shards of prompts.

A shard is one file, sampled and written as a whole; an engine's answer is a function of policy, shard and seed, so that
a run that was killed in the middle of a shard makes the same file again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nashpo.llm.engines.engine import Completion, Engine
from nashpo.llm.loop.phase import Phase, key_of, read_lines, write_lines
from nashpo.llm.loop.policies import Source
from nashpo.llm.loop.ranks import ALONE, Ranks, is_shared
from nashpo.llm.prompts import Prompt
from nashpo.llm.sampling import derived_seed

Samples = list[tuple[Completion, ...]]
NOT_IN_KEY = ("versions", "batch_size", "batch_tokens", "cache_tokens")
"""Of an engine's description: what may differ between the begin and the end of a phase."""
Progress = Callable[[str, int, int], None]
"""Of (what is done, how many are done, of how many)."""


def sample(
    folder: Path,
    engine: Engine,
    policy: Source,
    prompts: Sequence[Prompt],
    shard: int,
    seed: int,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> tuple[Samples, dict[str, Any]]:
    """Responses to every prompt, read back where they were drawn before.

    Parameters
    ----------
    folder : path
    engine : Engine
    policy : Source
    prompts : sequence of B Prompt
    shard : int
        Prompts per file.
    seed : int
        Of this piece of work. Responses follow from it, the policy's name and the shard.

    Returns
    -------
    B tuples of K Completion, and the phase's counts
    """
    about, by_first = engine.describe(), is_shared(engine)
    settings = {name: value for name, value in about.items() if name not in NOT_IN_KEY}
    key = key_of("samples", seed, policy.factors, [p.key for p in prompts], shard, settings)
    phase = Phase(folder, "samples", key, ranks)
    if not phase.committed:
        phase.begin(policy=list(policy.factors), engine=about, seed=seed)
        count = -(-len(prompts) // shard)
        missing = ranks.first(lambda: [n for n in range(count) if not (folder / _name(n)).exists()])
        progress("samples", (count - len(missing)) * shard, len(prompts))
        with ranks.together():
            for done, number in enumerate(ranks.deal(missing, by_first), 1):
                some = prompts[number * shard : (number + 1) * shard]
                drawn = engine.sample(policy, some, derived_seed(seed, f"{key}/{number}"))
                _check(drawn, some)
                write_lines(folder / _name(number), (_line(p, row) for p, row in zip(some, drawn, strict=True)))
                left = len(missing) - done * (1 if by_first else ranks.world)
                progress("samples", min(len(prompts), (count - max(0, left)) * shard), len(prompts))
        found = _read(folder, len(prompts), shard)
        counts = {**_counts(found), **getattr(engine, "counts", {})}
        phase.commit(policy=list(policy.factors), engine=about, seed=seed, counts=counts)
        engine.close()  # an engine of its own memory makes room for the trainer
    return _read(folder, len(prompts), shard), phase.manifest["counts"]


def _name(number: int) -> str:
    return f"{number:05d}.jsonl"


def _line(prompt: Prompt, row: Sequence[Completion]) -> dict[str, Any]:
    return {
        "prompt_key": prompt.key,
        "prompt": prompt.text,
        "prompt_ids": list(prompt.ids),
        "completions": [completion.to_json() for completion in row],
    }


def _check(drawn: Samples, prompts: Sequence[Prompt]) -> None:
    if len(drawn) != len(prompts) or any(not c.ids for row in drawn for c in row):
        raise ValueError(
            f"the engine gave {len(drawn)} lists of responses to {len(prompts)} prompts, or an empty response: each"
            " response needs at least one token"
        )


def _read(folder: Path, count: int, shard: int) -> Samples:
    files = [folder / _name(number) for number in range(-(-count // shard))]
    return [tuple(Completion.from_json(c) for c in line["completions"]) for path in files for line in read_lines(path)]


def _counts(samples: Samples) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in samples:
        counts["prompts"] += 1
        counts["responses"] += len(row)
        counts["tokens"] += sum(c.scored for c in row)
        if any(c.turns is not None for c in row):
            counts["turns"] += sum(1 if c.turns is None else (len(c.turns) + 1) // 2 for c in row)
            counts["other_side_tokens"] += sum(len(c.ids) - c.scored for c in row)
        counts["finished"] += sum(c.finished for c in row)
        counts["retokenized"] += sum(c.retokenized for c in row)
    return dict(counts)
