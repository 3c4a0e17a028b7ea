"""Training checkpoints that count: a marker with every file's digest, written last.

transformers' Trainer goes on from a checkpoint that lacks its optimizer or scheduler without a word, with other weights
than those of an uninterrupted run. Here a checkpoint without a valid marker is deleted, and training goes on from the
one before it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nashpo.llm.loop.phase import digest, sync_folder, write_json, write_lines
from nashpo.llm.loop.ranks import ALONE, Ranks

MARKER = "complete.json"
KEPT = 2
"""Complete checkpoints that are kept while a stage is trained: the newest, and the one before it."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a training's folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def mark(checkpoint: Path) -> None:
    """Bring the checkpoint's files to disk, then say so."""
    sync_folder(checkpoint)
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MARKER)
    sizes = {str(p.relative_to(checkpoint)): [p.stat().st_size, digest(p)] for p in files}
    write_json(checkpoint / MARKER, {"files": sizes})


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker is there and every file is as it was marked."""
    try:
        files = json.loads((checkpoint / MARKER).read_bytes())["files"]
        return bool(files) and all(
            (checkpoint / name).stat().st_size == size and digest(checkpoint / name) == found
            for name, (size, found) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint that counts; newer ones that do not are deleted."""
    for checkpoint in reversed(checkpoints(folder)):
        if is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Marks each checkpoint once the Trainer has written it, and only then deletes older ones.

    Parameters
    ----------
    ranks : Ranks
        Each of them writes a part of a checkpoint.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the Trainer's own writing."""
        self.ranks.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        mark(folder / f"checkpoint-{state.global_step}")
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)


class LogFile(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """The training's log in one file, replaced as a whole: a run that was killed leaves no row twice.

    Figures of speed differ between two runs and are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Everything so far, what a checkpoint remembers included."""
        if state.is_world_process_zero:
            self.write(state.log_history)

    def write(self, history: list[dict[str, Any]]) -> None:
        """The rows that hold more than figures of speed."""
        # Sorted: a checkpoint remembers the rows, and not the order of their names.
        rows = [{name: row[name] for name in sorted(row) if not _of_speed(name)} for row in history]
        rows = [row for row in rows if set(row) - {"step", "epoch"}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(self.path, rows)


def _of_speed(name: str) -> bool:
    return name.endswith(("_runtime", "_per_second", "_flos")) or name in ("train_loss", "total_flos")
