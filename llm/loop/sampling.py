"""The sampling phase: K responses of one policy to an iteration's prompts, in shards of prompts.

A shard is one file, sampled and written as a whole; an engine's answer is a function of policy, shard and seed, so that
a run that was killed in the middle of a shard makes the same file again.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nashpo.llm.conversation.levels import Drawn, State
from nashpo.llm.engines.engine import Completion, Engine
from nashpo.llm.loop.phase import Phase, key_of, read_lines, write_lines
from nashpo.llm.loop.policies import Source
from nashpo.llm.loop.ranks import ALONE, Ranks, is_shared
from nashpo.llm.prompts import Prompt
from nashpo.llm.sampling import derived_seed

Samples = list[tuple[Completion, ...]]
NOT_IN_KEY = ("versions", "batch_size", "batch_tokens", "cache_tokens")
"""Of an engine's description: what may differ between the begin and the end of a phase."""
COUNTS = "counts"
"""In a shard's first line: what the engine counted while it drew the shard, if anything."""
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
    B tuples of K Completion, and the phase's counts: ``prompts``, ``responses`` (whole conversations), ``tokens`` (the
    policy's that were drawn, each once), ``finished`` and ``retokenized`` responses; of conversations ``turns`` (the
    policy's answers, each once), by turns the ``states`` at which they were drawn and the ``answers``, and
    ``other_side_tokens``; and what the engine counted
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
                before = Counter(_own(engine))
                drawn = engine.sample(policy, some, derived_seed(seed, f"{key}/{number}"))
                _check(drawn, some)
                lines = [_line(p, row) for p, row in zip(some, drawn, strict=True)]
                if seen := Counter(_own(engine)) - before:
                    lines[0][COUNTS] = dict(seen)
                write_lines(folder / _name(number), lines)
                left = len(missing) - done * (1 if by_first else ranks.world)
                progress("samples", min(len(prompts), (count - max(0, left)) * shard), len(prompts))
        found, counted = _read(folder, len(prompts), shard)
        counts = {**_counts(found, about.get("conversation", {}).get("draws", ())), **counted}
        phase.commit(policy=list(policy.factors), engine=about, seed=seed, counts=counts)
        engine.close()  # an engine of its own memory makes room for the trainer
        return found, phase.manifest["counts"]
    return _read(folder, len(prompts), shard)[0], phase.manifest["counts"]


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


def _read(folder: Path, count: int, shard: int) -> tuple[Samples, dict[str, int]]:
    """The samples, and what the engine counted while it drew them, in any process."""
    samples: Samples = []
    seen: Counter[str] = Counter()
    for number in range(-(-count // shard)):
        for line in read_lines(folder / _name(number)):
            samples.append(tuple(Completion.from_json(c) for c in line["completions"]))
            seen.update(line.get(COUNTS, {}))
    return samples, dict(seen)


def _own(engine: Engine) -> Mapping[str, int]:
    """What an engine has counted since it was made, in this process."""
    found: Mapping[str, int] = getattr(engine, "counts", {})
    return found


def _counts(samples: Samples, draws: Sequence[int]) -> dict[str, Any]:
    """Of what is stored; ``draws`` are the answers at each state of a depth where these are conversations."""
    rows = [completion for row in samples for completion in row]
    of_rows = {
        "finished": sum(c.finished for c in rows),
        "retokenized": sum(c.retokenized for c in rows),
    }
    counts: dict[str, Any] = {"prompts": len(samples), "responses": len(rows)}
    if not draws:
        return {**counts, "tokens": sum(c.scored for c in rows), **of_rows}
    tree = State(tuple(draws))
    found = [tree.drawn(row) for row in samples]
    turns = [sum(depth, Drawn()) for depth in zip(*found, strict=True)]
    whole = sum(turns, Drawn())
    said = {
        "turns": whole.answers,
        "states": [turn.states for turn in turns],
        "answers": [turn.answers for turn in turns],
        "other_side_tokens": whole.between,
    }
    return {**counts, "tokens": whole.tokens, **said, **of_rows}
