"""Preference data: rows of text, conversations or token ids become responses with payoffs; what is left out is counted.

Shapes: N rows with at most K responses each; numbers per response are (N, K) float64, win matrices (N, K, K).

Columns, in one of three forms:

- ``prompt, chosen, rejected``, and if known ``chosen_probs`` (the probability that chosen beats rejected) and
  ``chosen_probs_win``, ``chosen_probs_lose`` (their mean win rates over the responses that they were drawn from);
- the same with ``completions``, a list of responses that the current policy generated (SPAC);
- ``prompt, completions, win_matrix``: K responses and the K × K probabilities that row beats column.

``prompt`` may be left out where chosen and rejected are conversations that begin alike. A row may also bring ``tools``
and ``chat_template_kwargs`` for its chat template. A data set is a list of dictionaries, or anything with ``__len__``
and ``__getitem__``.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nashpo.llm.encoding import Encoder, is_conversation
from nashpo.llm.preferences import PreferenceData as PreferenceData
from nashpo.llm.preferences import Report as Report
from nashpo.llm.responses import Responses, Scored

PAIR = ("prompt", "chosen", "rejected")
SAMPLES = ("prompt", "completions", "win_matrix")
PROBABILITIES = ("chosen_probs", "chosen_probs_win", "chosen_probs_lose")
TEMPLATE = ("tools", "chat_template_kwargs")
_SKEW_TOLERANCE = 1e-3
"""Judges write their probabilities with few digits."""


@dataclass(frozen=True)
class Limits:
    """What is done to rows that are long, unfinished or tied; see `nashpo.llm.config.SelfPlayConfig`."""

    max_length: int | None = None
    max_prompt_length: int | None = None
    truncation: str = "drop"
    missing_eos: str = "keep"
    ties: str = "skip"
    label_smoothing: float = 0.0


def prepare(
    rows: Any, encoder: Encoder, limits: Limits = Limits(), ignored: Sequence[str] = (), vocabulary: int | None = None
) -> PreferenceData:
    """Encode a data set.

    Parameters
    ----------
    rows
        A list of dictionaries, or anything with ``__len__`` and ``__getitem__`` that yields them.
    encoder : Encoder
    limits : Limits
    ignored : sequence of str
        Columns that are known to mean nothing here.
    vocabulary : int, optional
        Size of the model's vocabulary; larger ids are refused.

    Raises
    ------
    ValueError
        Unknown or missing columns, an empty completion, a probability outside [0, 1], a win matrix that is not K × K
        with P + Pᵀ = 1, a row that is too long under ``truncation="error"``, or no row left. Rows are named by number.
    """
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise ValueError(
            f"a data set needs __len__ and __getitem__; {type(rows).__name__} has not (streams are not read)"
        )
    if len(rows) == 0:
        raise ValueError("the data set has no rows")
    dropped: Counter[str] = Counter()
    encoder.counts.clear()
    kept = []
    for index in range(len(rows)):
        try:
            found = _encoded(index, rows[index], encoder, limits, ignored, vocabulary)
        except ValueError as error:
            raise ValueError(f"row {index} of the data set: {error}") from None
        if isinstance(found, str):
            dropped[found] += 1
        else:
            kept.append(found)
    report = Report(len(rows), len(kept), dict(dropped), dict(encoder.counts))
    if not kept:
        raise ValueError(f"no row of the data set is left: {report}")
    return _collected(kept, report)


@dataclass(frozen=True)
class _Row:
    index: int
    sequences: tuple[Scored, ...]
    values: list[float]
    weights: list[float]
    preferred: list[list[float]]
    generated: list[float]
    samples: int
    best: int
    worst: int


def _filled(numbers: Sequence[float], width: int) -> list[float]:
    return [*numbers, *[0.0] * (width - len(numbers))]


def _collected(rows: Sequence[_Row], report: Report) -> PreferenceData:
    width = max(len(row.sequences) for row in rows)
    preferred = torch.full((len(rows), width, width), 0.5, dtype=torch.float64)
    for place, row in enumerate(rows):
        size = len(row.preferred)
        preferred[place, :size, :size] = torch.tensor(row.preferred, dtype=torch.float64)
    generated = None
    if any(row.generated for row in rows):
        generated = torch.tensor([_filled(row.generated, width) for row in rows], dtype=torch.float64)
    return PreferenceData(
        Responses(
            tuple(row.sequences for row in rows),
            torch.tensor([_filled(row.weights, width) for row in rows], dtype=torch.float64),
            names=tuple(str(row.index) for row in rows),
        ),
        torch.tensor([_filled(row.values, width) for row in rows], dtype=torch.float64),
        preferred,
        generated,
        torch.tensor([row.samples for row in rows]),
        torch.tensor([row.best for row in rows]),
        torch.tensor([row.worst for row in rows]),
        report,
    )


def _encoded(
    index: int, row: Mapping[str, Any], encoder: Encoder, limits: Limits, ignored: Sequence[str], vocabulary: int | None
) -> "_Row | str":
    """The row, or the reason to leave it out."""
    row = {name: value for name, value in row.items() if name not in ignored and value is not None}
    row = _with_prompt(row)
    _check_columns(row)
    responses = _texts(row)
    judged = _win_matrix(row, limits) if "win_matrix" in row else _pair_matrix(row, limits)
    options = {**row.get("chat_template_kwargs", {}), **({"tools": row["tools"]} if "tools" in row else {})}
    prompt = encoder.prompt(row["prompt"], options)
    results = [encoder.response(row["prompt"], prompt, text, options) for text in responses]
    if limits.missing_eos == "drop" and not all(ended for _, ended in results):
        return "unfinished"
    sequences = []
    for scored, _ in results:
        fitted = _fitted(scored, encoder, limits)
        if fitted is None:
            return "too_long"
        sequences.append(fitted)
    if vocabulary is not None:
        largest = max(max(s.ids) for s in sequences)
        if largest >= vocabulary:
            raise ValueError(f"token id {largest} is outside the model's vocabulary of {vocabulary}")
    if len(set(sequences[: len(judged)])) == 1:
        return "identical"
    if limits.ties == "skip" and all(p == 0.5 for line in judged for p in line):
        return "ties"
    return _row(index, row, tuple(sequences), judged)


def _row(index: int, row: Mapping[str, Any], sequences: tuple[Scored, ...], judged: list[list[float]]) -> _Row:
    size, extra = len(judged), len(sequences) - len(judged)
    weights = [1 / size] * size + [0.0] * extra
    generated = [0.0] * size + [1 / extra] * extra if extra else []
    if "win_matrix" in row:
        values = [sum(line) / size - 0.5 for line in judged]
        best = max(range(size), key=values.__getitem__)
        worst = min(range(size), key=values.__getitem__)
        return _Row(index, sequences, values, weights, judged, generated, size, best, worst)
    values = [judged[0][1] - 0.5, judged[1][0] - 0.5]
    if "chosen_probs_win" in row:
        values = [_probability(row, name) - 0.5 for name in ("chosen_probs_win", "chosen_probs_lose")]
    return _Row(index, sequences, values + [0.0] * extra, weights, judged, generated, 0, 0, 1)


def _texts(row: Mapping[str, Any]) -> list[Any]:
    if "win_matrix" not in row:
        return [row["chosen"], row["rejected"], *row.get("completions", ())]
    if len(row["completions"]) < 2:
        raise ValueError(f"{len(row['completions'])} completions cannot be compared: give at least 2")
    return list(row["completions"])


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """The prompt of conversations that hold it themselves: what chosen and rejected begin with alike."""
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    if not (is_conversation(chosen) and is_conversation(rejected)) or chosen[0]["role"] == "assistant":
        return row
    if is_conversation(row.get("prompt")):
        return row  # chosen and rejected go on from the prompt, with a user's or tool's turn first
    alike = 0
    while alike < min(len(chosen), len(rejected)) and chosen[alike] == rejected[alike]:
        alike += 1
    while alike and chosen[alike - 1]["role"] == "assistant":
        alike -= 1  # two equal answers, which are counted as such
    if not alike:
        raise ValueError("chosen and rejected are conversations that begin differently: give the prompt as a column")
    return {**row, "prompt": chosen[:alike], "chosen": chosen[alike:], "rejected": rejected[alike:]}


def _check_columns(row: Mapping[str, Any]) -> None:
    known = (*PAIR, *PROBABILITIES, "completions", "win_matrix", *TEMPLATE)
    expected = f"expected are {', '.join(PAIR)} or {', '.join(SAMPLES)}; allowed too are {', '.join(known[3:])}"
    unknown = [name for name in row if name not in known]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)}: name it in ignored_columns or take it out; {expected}")
    wanted = SAMPLES if "win_matrix" in row or ("completions" in row and "chosen" not in row) else PAIR
    missing = [name for name in wanted if name not in row]
    if missing:
        raise ValueError(f"missing column {', '.join(missing)}; {expected}")
    if wanted is SAMPLES and (extra := [name for name in (*PAIR[1:], *PROBABILITIES) if name in row]):
        raise ValueError(f"columns win_matrix and {', '.join(extra)} say the same twice: give one form; {expected}")
    if ("chosen_probs_win" in row) != ("chosen_probs_lose" in row):
        raise ValueError("chosen_probs_win and chosen_probs_lose come together")


def _probability(row: Mapping[str, Any], name: str) -> float:
    number = float(row[name])
    if not 0 <= number <= 1:
        raise ValueError(f"{name} = {number} is no probability in [0, 1]")
    return number


def _pair_matrix(row: Mapping[str, Any], limits: Limits) -> list[list[float]]:
    won = _probability(row, "chosen_probs") if "chosen_probs" in row else 1 - limits.label_smoothing
    return [[0.5, won], [1 - won, 0.5]]


def _win_matrix(row: Mapping[str, Any], limits: Limits) -> list[list[float]]:
    size = len(row["completions"])
    matrix = [[float(p) for p in line] for line in row["win_matrix"]]
    if len(matrix) != size or any(len(line) != size for line in matrix):
        shape = f"{len(matrix)} × {len(matrix[0]) if matrix else 0}"
        raise ValueError(f"win_matrix is {shape} for {size} completions: it must be {size} × {size}")
    for i in range(size):
        for j in range(size):
            if not 0 <= matrix[i][j] <= 1:
                raise ValueError(f"win_matrix[{i}][{j}] = {matrix[i][j]} is no probability in [0, 1]")
            if not math.isclose(matrix[i][j] + matrix[j][i], 1, abs_tol=_SKEW_TOLERANCE):
                raise ValueError(
                    f"win_matrix[{i}][{j}] + win_matrix[{j}][{i}] = {matrix[i][j] + matrix[j][i]:g} must be 1 (the"
                    " diagonal is 1/2): average both orders of a judgement first"
                )
    return [[(matrix[i][j] + 1 - matrix[j][i]) / 2 for j in range(size)] for i in range(size)]


def _fitted(scored: Scored, encoder: Encoder, limits: Limits) -> Scored | None:
    """The sequence within the limits, or None where it is to be dropped."""
    prompt = scored.mask.index(1)
    excess = max(
        len(scored.ids) - (limits.max_length or len(scored.ids)), prompt - (limits.max_prompt_length or prompt)
    )
    if excess <= 0:
        return scored
    if limits.truncation == "error":
        raise ValueError(
            f"a prompt of {prompt} and a response of {len(scored.ids) - prompt} tokens exceed max_length ="
            f" {limits.max_length} or max_prompt_length = {limits.max_prompt_length}; truncation may be drop or left"
        )
    begin = encoder.begin_length(scored.ids)
    # One token must stay before the response, and cutting the response itself would change what is scored.
    if limits.truncation == "drop" or prompt - excess < max(1, begin):
        return None
    encoder.counts["truncated"] += 1
    keep = [*range(begin), *range(begin + excess, len(scored.ids))]
    return Scored(tuple(scored.ids[i] for i in keep), tuple(scored.mask[i] for i in keep))
