"""What stops a training: a first log-ratio that is not 0, and a loss that is not finite.

Shapes: B rows with K responses each; log-probabilities (B, K) in nats, losses (B,).
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nashpo.llm.fit import Layout, NonFiniteLoss
from nashpo.llm.responses import Responses

log = logging.getLogger(__name__)
FIRST_RATIO = 1e-4
"""Largest first log-ratio in nats, beside the rounding of the log-probabilities themselves."""


def check_first_ratio(
    model: nn.Module,
    logprobs: Tensor,
    start: Tensor,
    responses: Responses,
    rows: Sequence[int],
    layout: Layout,
    lower: bool,
) -> None:
    """Before any update the model is the policy that training starts from: its log-ratio to it must be 0.

    It may be as large as fp32 rounding explains, and in lower precisions four times the spread between two packings of
    the batch.

    Parameters
    ----------
    model : nn.Module
    logprobs, start : (B, K)
        Of the model, and of the policy that training starts from.
    responses : Responses
    rows : sequence of B int
    layout : Layout
    lower : bool
        Whether the model computes in a lower precision than that of its weights.

    Raises
    ------
    ValueError
    """
    found = (logprobs - start).abs().max().item()
    # A sum of log-probabilities of that size is rounded to 2^-23 of it.
    allowed = FIRST_RATIO + 4 * torch.finfo(torch.float32).eps * logprobs.abs().max().item()
    if found > allowed and (lower or next(model.parameters()).dtype != torch.float32):
        with torch.no_grad():
            apart = [layout.logprobs(model, [sequence]) for sequence in responses.rows(rows)]
        spread = (responses.grid(torch.cat(apart), rows).double() - logprobs).abs().max().item()
        log.info("spread of log-probabilities between packings of one batch: %.3g nats", spread)
        allowed = max(allowed, 4 * spread)
    log.info("first log-ratio: %.3g nats, %.3g allowed", found, allowed)
    if not found <= allowed:
        raise ValueError(
            f"before any update the log-ratio to the starting policy is {found:.3g} nats where {allowed:.3g} is"
            " allowed; what usually breaks it: dropout that is on, weights that changed after the trainer was made, or"
            " known log-probabilities of another policy, layout or precision"
        )


def refuse_non_finite(losses: Tensor, log_ratio: Tensor, names: Sequence[str], step: int, folder: str | Path) -> None:
    """Stop at losses that are not finite, with the batch's rows saved in ``nonfinite-batch.json``.

    Raises
    ------
    NonFiniteLoss
    """
    if bool(losses.isfinite().all()):
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nonfinite-batch.json"
    saved = {
        "step": step,
        "rows": list(names),
        "losses": [str(x) for x in losses.tolist()],
        "log_ratios": [[str(x) for x in line] for line in log_ratio.tolist()],
    }
    path.write_text(json.dumps(saved, indent=1))
    raise NonFiniteLoss(f"the loss is not finite at step {step}: the batch's {len(names)} rows are in {path}")
