"""The last iterate on the hub, with its model card: ``training.push_to_hub`` as transformers' Trainer has it.

A stage's own trainer never pushes: what it holds may be an auxiliary policy.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nashpo.llm.loop.phase import MANIFEST, write_json

PUSHED = "pushed.json"
OPTIONS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "hub_strategy", "hub_revision")
"""Fields of TrainingArguments that are the run's business."""


def push(run: Path, folder: Path, training: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Upload the weights of a finished run once, if its recipe says so.

    Parameters
    ----------
    run : path
    folder : path
        Of the last iterate.
    training : mapping
        ``push_to_hub``; ``hub_model_id``, by default the run folder's name; ``hub_private_repo``. The token is
        the one that the hub's own tools find.

    Raises
    ------
    ValueError
        If the hub refuses, in one line; the run itself is finished and kept.
    """
    if not training.get("push_to_hub"):
        return
    name = str(training.get("hub_model_id") or run.resolve().name)
    told = run / PUSHED
    if told.exists() and json.loads(told.read_bytes()).get("model") == str(folder.relative_to(run)):
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=training.get("hub_private_repo"), exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=str(folder), ignore_patterns=[MANIFEST, "*.part"])
    except Exception as error:  # the hub's client has many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the run is finished, but {name} was not pushed to the hub ({first}): log in, or set"
            " training.hub_model_id, and run the same command again"
        ) from error
    write_json(told, {"repository": repository.repo_id, "model": str(folder.relative_to(run))})
    say(f"pushed {folder} to {repository.repo_id}")
