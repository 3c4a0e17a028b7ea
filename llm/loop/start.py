"""Where self-play starts: a model that is named, one that is built, or either after a supervised warm-up.

``RUN/start`` holds the start's weights where the run made them, and otherwise only a manifest that names the model.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nashpo.llm.encoding import Encoder
from nashpo.llm.loop.checkpoints import CompleteCheckpoints, LogFile, checkpoints, last_complete
from nashpo.llm.loop.phase import Phase, key_of
from nashpo.llm.loop.ranks import ALONE, Ranks
from nashpo.llm.loop.training import LOG, Fitting
from nashpo.llm.prompts import read_rows
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.sharding import whole_state
from nashpo.llm.warmup import supervised_data, tiny_data, warm_up

TINY = "tiny"
"""What a built model brings: its weights, prompts and game."""


def base(run: Path, recipe: Recipe) -> str:
    """The folder or name of the model before any training."""
    if recipe.start_from is not None:
        return recipe.start_from
    return recipe.model.path if recipe.model.path is not None else str(run / TINY)


def build(run: Path, recipe: Recipe, ranks: Ranks = ALONE) -> None:
    """The tiny model that the recipe asks for, with its prompts and its game, in ``RUN/tiny``."""
    if recipe.model.build is None:
        return
    import torch

    from nashpo.llm.tiny import build_tiny
    from nashpo.llm.tiny_game import write_tables

    torch.set_num_threads(1)  # in a model this small, threads do little but wait for each other

    tiny: Any = recipe.model.build
    phase = Phase(run / TINY, "tiny", key_of("tiny", recipe.to_dict()["model"]["build"]), ranks)
    if not phase.committed:
        phase.begin()
        if ranks.is_first:
            build_tiny(tiny, phase.folder)
            write_tables(tiny, phase.folder)
        phase.commit()


def start(run: Path, recipe: Recipe, origin: str, model: Any, fitting: Fitting, encoder: Encoder) -> str:
    """The folder or name of the policy that self-play starts from, warmed up first where the recipe says so."""
    about: Mapping[str, Any] = recipe.to_dict()
    warmup = recipe.warmup if recipe.start_from is None else None
    key = key_of("start", _named(run, origin), about["model"], None if warmup is None else about["warmup"], recipe.seed)
    ranks = fitting.ranks
    phase = Phase(run / "start", "start", key, ranks)
    if warmup is None:
        if not phase.committed:
            phase.begin()
            phase.commit([], model=_named(run, origin))
        return origin
    if not phase.committed:
        phase.begin()
        _warm_up(run / "warmup", phase.folder, recipe, model, fitting, encoder, key)
        phase.commit(model=_named(run, origin))
        if ranks.is_first:
            for old in checkpoints(run / "warmup"):
                shutil.rmtree(old)
    return str(phase.folder)


def _named(run: Path, origin: str) -> str:
    """A folder within the run by its place there, so that a run may be moved."""
    path = Path(origin)
    return str(path.relative_to(run)) if path.is_relative_to(run) else origin


def _warm_up(
    folder: Path, result: Path, recipe: Recipe, model: Any, fitting: Fitting, encoder: Encoder, key: str
) -> None:
    """Train the model on given responses, or go on with that, and write it as the start."""
    warmup, tiny = recipe.warmup, recipe.model.build
    assert warmup is not None
    own = replace(fitting, training={**warmup.training})
    args = own.arguments(folder, key)
    if warmup.source == TINY:
        if tiny is None:
            raise ValueError("warmup.source = tiny needs a model that is built: model.build")
        data = tiny_data(tiny)
    else:
        assert warmup.data is not None
        data = supervised_data(read_rows(warmup.data), encoder, args.max_length)
    ranks = fitting.ranks
    checkpoint = ranks.first(lambda: last_complete(folder))
    log_file = LogFile(folder / LOG)
    trainer = warm_up(
        model,
        data,
        args,
        fitting.tokenizer,
        [CompleteCheckpoints(ranks), log_file],
        None if checkpoint is None else str(checkpoint),
    )
    state = whole_state(trainer, keep=ranks.is_first)
    if ranks.is_first:
        log_file.write(trainer.state.log_history)
        model.save_pretrained(result, state_dict=state)
        fitting.tokenizer.save_pretrained(result)
