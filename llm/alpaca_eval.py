"""Responses as AlpacaEval reads them, for its own scoring: one JSON list per policy.

Each item is ``{"instruction", "output", "generator"}``, the first response to each of B prompts; score a file with
``alpaca_eval --model_outputs FILE``. Its leaderboard is about its own 805 instructions.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nashpo.core.store import replace_file
from nashpo.llm.loop.sampling import Samples
from nashpo.llm.prompts import Prompt, prompt_text


def exportable(prompts: Sequence[Prompt]) -> None:
    """That every prompt has a text.

    Raises
    ------
    ValueError
        For prompts of token ids.
    """
    for prompt in prompts:
        prompt_text(prompt.text)


def export(folder: Path, names: Sequence[str], prompts: Sequence[Prompt], samples: Sequence[Samples]) -> list[Path]:
    """Write one file per policy, named by it; ``samples`` has B rows for each of them.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, drawn) in enumerate(zip(names, samples, strict=True)):
        items = [
            {"instruction": prompt_text(prompt.text), "output": row[0].text, "generator": name}
            for prompt, row in zip(prompts, drawn, strict=True)
        ]
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")
        path = folder / f"{number:02d}-{plain[:80]}.json"
        replace_file(path, _text(items))
        paths.append(path)
    return paths


def _text(items: list[dict[str, Any]]) -> bytes:
    return (json.dumps(items, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")
