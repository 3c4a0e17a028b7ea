r"""Judged responses as a game: for every prompt the answers of several models, each judged against one baseline answer.

Shapes: ``contexts`` prompts by ``n`` models (the baseline is one of them, the last): ``P: (contexts, n, n)``. One JSON
object a line, plain or gzipped, with ``prompt`` and ``responses``: an object from model to
``{"p_beats_baseline": p, ...}``, or a list of such objects with a key ``model``.

Only p, the win rate over the baseline, is known. The win rate of two answers over each other is *modelled* as
:math:`P(i \succ j) = \sigma(\operatorname{logit} p_i - \operatorname{logit} p_j)`, with p clipped to [1e-6, 1 - 1e-6].
So the game is Bradley-Terry by construction, with reward :math:`\operatorname{logit} p` nats: in every context the
un-regularized equilibrium is the best answer (any mixture where several tie for it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.tabular.game import Game
from nashpo.tabular.json_lines import text_lines
from nashpo.tabular.raw_files import distinct_keys, named
from nashpo.tabular.win_rates import Array, bradley_terry_win_rates, to_numpy

BASELINE = "gpt4_1106_preview"
"""Whose answers the published AlpacaEval 2 judgements are measured against."""


@dataclass(frozen=True)
class Judged:
    """Judged responses.

    Attributes
    ----------
    game : Game
        One context per prompt, uniform weights, ``names = models``, ``reward`` = logit p; ragged where a model lacks an
        answer.
    prompts : tuple of str
    models : tuple of str
        In order of first appearance, the baseline last.
    """

    game: Game
    prompts: tuple[str, ...]
    models: tuple[str, ...]

    def model_shares(self, policy: Array) -> dict[str, float]:
        """How often a policy (contexts, n) plays each model's answer, on average over prompts; sums to 1.

        Raises
        ------
        ValueError
            If the policy's shape is not (contexts, n).
        """
        probabilities = to_numpy(policy)
        shape = (*self.game.batch_shape, self.game.n)
        if tuple(probabilities.shape) != shape:
            raise ValueError(f"the policy has shape {tuple(probabilities.shape)}, but prompts x models is {shape}")
        shares = to_numpy(self.game.weights) @ probabilities
        return dict(zip(self.models, shares.tolist(), strict=True))

    def ties(self) -> int:
        """Number of prompts where several answers share the largest win rate, so that the equilibrium is not unique."""
        reward, exists = _numpy_reward(self.game)
        best = np.where(exists, reward, -np.inf)
        return int(((best == best.max(axis=-1, keepdims=True)).sum(axis=-1) > 1).sum())


def is_judged(path: str | PathLike[str]) -> bool:
    """Whether a file's name says that it holds judged responses (.jsonl, .jsonl.gz)."""
    return str(path).lower().endswith((".jsonl", ".jsonl.gz"))


def read_judged(path: str | PathLike[str], clip: float = 1e-6, baseline: str = BASELINE) -> Judged:
    """Read judged responses.

    Parameters
    ----------
    path : path
        JSON lines, plain or gzipped (told by content).
    clip : float in (0, 0.5)
        Win rates are clipped to [clip, 1 - clip], so that rewards are finite.
    baseline : str
        Name for the answer all others were judged against; it enters every context with p = 1/2.

    Raises
    ------
    ValueError
        The file is not there, truncated, damaged or empty; a line is not JSON or lacks a key; a p outside [0, 1]; a
        model twice in a line, or named as the baseline.
    """
    if not 0 < clip < 0.5:
        raise ValueError(f"clip is {clip}, but must be in (0, 0.5)")
    prompts: list[str] = []
    judgements: list[dict[str, float]] = []
    with named(str(path)):
        for number, line in text_lines(Path(path)):
            prompt, found = _record(number, line)
            if baseline in found:
                raise ValueError(f"line {number}: the model {baseline!r} has the baseline's name")
            prompts.append(prompt)
            judgements.append(found)
        if not prompts:
            raise ValueError("the file is empty: no judged prompts")
    models = (*dict.fromkeys(model for found in judgements for model in found), baseline)
    p = np.array([[found.get(model, np.nan) for model in models[:-1]] + [0.5] for found in judgements])
    exists = ~np.isnan(p)
    p = np.clip(np.where(exists, p, 0.5), clip, 1 - clip)
    reward = np.log(p) - np.log1p(-p)
    game = Game(bradley_terry_win_rates(np, reward), mask=exists, names=models, reward=reward)
    return Judged(game, tuple(prompts), models)


def _numpy_reward(game: Game) -> tuple[NDArray[Any], NDArray[Any]]:
    reward = to_numpy(game.reward)
    return reward, np.ones(reward.shape, dtype=bool) if game.mask is None else to_numpy(game.mask)


def _record(number: int, line: str) -> tuple[str, dict[str, float]]:
    """The prompt and the win rate of every model over the baseline."""
    try:
        record = json.loads(line, object_pairs_hook=distinct_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or "responses" not in record:
        raise ValueError(f'line {number} must be an object with "prompt" (text) and "responses"')
    prompt = record["prompt"]
    return prompt, {model: _probability(number, prompt, model, entry) for model, entry in _responses(number, record)}


def _responses(number: int, record: dict[str, Any]) -> list[tuple[str, Any]]:
    responses = record["responses"]
    if isinstance(responses, dict):
        return list(responses.items())
    if not isinstance(responses, list):
        raise ValueError(f"line {number}: responses must be an object or a list")
    found: dict[str, Any] = {}
    for entry in responses:
        model = entry.get("model") if isinstance(entry, dict) else None
        if not isinstance(model, str):
            raise ValueError(f'line {number}: every response in a list needs a "model"')
        if model in found:
            raise ValueError(f"line {number}: the model {model!r} occurs twice")
        found[model] = entry
    return list(found.items())


def _probability(number: int, prompt: str, model: str, entry: Any) -> float:
    p = entry.get("p_beats_baseline") if isinstance(entry, dict) else None
    shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
    if not isinstance(p, int | float) or isinstance(p, bool):
        raise ValueError(f"line {number}, prompt {shown!r}: the response of {model!r} has no number p_beats_baseline")
    if not 0 <= p <= 1:
        raise ValueError(
            f"line {number}, prompt {shown!r}: p_beats_baseline of {model!r} is {str(p)[:20]}, outside [0, 1]"
        )
    return float(p)
