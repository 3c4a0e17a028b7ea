"""What a trainer sums up from one log to the next, and that a checkpoint is never written between two logs.

Shapes: as in `nashpo.llm.metrics`, B rows per batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from nashpo.llm.metrics import Means


class LogSums(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Means and tokens since the last log.

    They are no part of a checkpoint. So a log comes right before each checkpoint, which empties these sums and
    transformers' running loss and puts them into the log history; a resumed run goes on from there, with the logs of
    a run that was never stopped. Callbacks that ask for checkpoints must come before this one.

    Attributes
    ----------
    train, evaluation : Means
    tokens : int
        Of this process.
    """

    def __init__(self) -> None:
        self.train = Means()
        self.evaluation = Means()
        self.tokens = 0

    def num_tokens(self, history: list[dict[str, float]], reduce: Callable[[Tensor], Tensor]) -> float:
        """Tokens of all logs and processes; those of this log start again.

        Parameters
        ----------
        history : list of dict
            The logs before.
        reduce : callable
            Sums a tensor over the processes.
        """
        before = next((entry["num_tokens"] for entry in reversed(history) if "num_tokens" in entry), 0.0)
        since = reduce(torch.tensor(float(self.tokens), dtype=torch.float64)).item()
        self.tokens = 0
        return before + since

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what a training before this one left."""
        self.__init__()  # type: ignore[misc]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Log before a checkpoint; one of the best model is asked for after the log, by an evaluation."""
        if control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST):
            control.should_log = True
        return control

    on_epoch_end = on_step_end
