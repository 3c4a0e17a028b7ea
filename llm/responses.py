"""The data of one stage: prompts, K responses each as token ids with loss masks, what they earn and who beat whom.

Shapes: B prompts with K responses each; numbers per response are (B, K), win matrices (B, K, K). A sequence is a prompt
and a response in one list of token ids; its loss mask is 1 on the tokens of the policy, in any number of spans (the
assistant turns of a conversation). Prompts may have different numbers of responses: `Responses.weights` is 0 where a
response is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nashpo.llm.packing import Packed


@dataclass(frozen=True)
class Scored:
    """One sequence: token ids of prompt and response, and 1 where a token is the policy's.

    Raises
    ------
    ValueError
        On a mask of another length, a scored first token, or a sequence without tokens.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask) or not self.ids:
            raise ValueError(f"a sequence has {len(self.ids)} tokens and a loss mask of {len(self.mask)}")
        if self.mask[0]:
            raise ValueError("a loss mask scores the first token, which has no prefix: begin with a prompt or a BOS")

    @classmethod
    def completion(cls, prompt: Sequence[int], completion: Sequence[int]) -> "Scored":
        """A prompt and one completion, all of whose tokens are scored."""
        return cls((*prompt, *completion), (0,) * len(prompt) + (1,) * len(completion))


@dataclass(frozen=True)
class Padded:
    """Sequences in rows of one length, (N, T) each: what `nashpo.llm.logprobs.sequence_logprobs` takes."""

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor

    @classmethod
    def from_sequences(cls, sequences: Sequence[Scored], pad_id: int = 0, left: bool = False) -> "Padded":
        """Padded on the right, or on the left."""
        length = max(len(s.ids) for s in sequences)

        def rows(lists: Sequence[Sequence[int]], fill: int) -> Tensor:
            padded = [
                [fill] * (length - len(x)) + list(x) if left else list(x) + [fill] * (length - len(x)) for x in lists
            ]
            return torch.tensor(padded, dtype=torch.long)

        ones = [(1,) * len(s.ids) for s in sequences]
        return cls(rows([s.ids for s in sequences], pad_id), rows(ones, 0), rows([s.mask for s in sequences], 0))

    def to(self, device: torch.device | str) -> "Padded":
        """The same batch on a device."""
        return Padded(self.input_ids.to(device), self.attention_mask.to(device), self.loss_mask.to(device))


def pack(sequences: Sequence[Scored]) -> Packed:
    """Sequences in one row without padding."""
    return Packed.from_sequences([(s.ids, s.mask) for s in sequences])


@dataclass(frozen=True)
class Responses:
    """Responses to B prompts: draws of one policy, or all responses there are with their probabilities.

    Attributes
    ----------
    sequences : tuple of B tuples of at most K `Scored`
    weights : (B, K) float64
        1/K for draws, probabilities where ``enumerated``; 0 where missing; every row adds up to 1.
    enumerated : bool
        Whether these are all responses of positive probability.
    names : tuple of B str
        Of the prompts, for messages and saved batches.
    """

    sequences: tuple[tuple[Scored, ...], ...]
    weights: Tensor
    enumerated: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(str(b) for b in range(len(self.sequences))))
        width = max((len(row) for row in self.sequences), default=0)
        if self.weights.shape != (len(self.sequences), width) or len(self.names) != len(self.sequences):
            raise ValueError(
                f"{len(self.sequences)} prompts of at most {width} responses have weights {tuple(self.weights.shape)}"
                f" and {len(self.names)} names"
            )

    @classmethod
    def drawn(cls, sequences: Sequence[Sequence[Scored]], names: Sequence[str] = ()) -> "Responses":
        """Independent draws of one policy: equal weights within each prompt."""
        rows = tuple(tuple(row) for row in sequences)
        width = max(len(row) for row in rows)
        weights = torch.zeros(len(rows), width, dtype=torch.float64)
        for b, row in enumerate(rows):
            weights[b, : len(row)] = 1 / len(row)
        return cls(rows, weights, False, tuple(names))

    @classmethod
    def united(cls, parts: Sequence["Responses"]) -> "Responses":
        """The union of the responses of several policies, each with the same total weight: draws of their average."""
        if len(parts) == 1:
            return parts[0]
        rows, weights = [], []
        for b in range(len(parts[0].sequences)):
            rows.append(tuple(s for part in parts for s in part.sequences[b]))
            weights.append(torch.cat([part.weights[b, : len(part.sequences[b])] / len(parts) for part in parts]))
        padded = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)
        return cls(tuple(rows), padded, all(part.enumerated for part in parts), parts[0].names)

    def __len__(self) -> int:
        return len(self.sequences)

    def rows(self, prompts: Sequence[int]) -> list[Scored]:
        """The sequences of some prompts, one after another."""
        return [s for b in prompts for s in self.sequences[b]]

    def grid(self, values: Tensor, prompts: Sequence[int]) -> Tensor:
        """Numbers of `rows` in order, (N,), as (len(prompts), K) with 0 where a response is missing."""
        pieces = values.split([len(self.sequences[b]) for b in prompts])
        result = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
        return torch.nn.functional.pad(result, (0, self.weights.shape[1] - result.shape[1]))

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers only."""
        return {
            "sequences": [[[list(s.ids), list(s.mask)] for s in row] for row in self.sequences],
            "weights": self.weights.tolist(),
            "enumerated": self.enumerated,
            "names": list(self.names),
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Responses":
        """What `to_json` gave."""
        rows = tuple(tuple(Scored(tuple(i), tuple(m)) for i, m in row) for row in saved["sequences"])
        weights = torch.tensor(saved["weights"], dtype=torch.float64)
        return cls(rows, weights, saved["enumerated"], tuple(saved["names"]))


@dataclass(frozen=True)
class Answer:
    """One payoff on one set of responses.

    Attributes
    ----------
    responses : Responses
        As a rule those of the stage's ``on``; a payoff that brings data of its own (SPAC's pairs) may add to them.
    values : (B, K) float64
        The payoff g(y), win rates centred: P̂(y ≻ π) − ½.
    preferred : (B, K, K) float64, optional
        Who beat whom among the responses, where they were compared with each other.
    generated : (B, K) float64, optional
        Weights of the self-generated ones among the responses, where they are told apart (SPAC).
    """

    responses: Responses
    values: Tensor
    preferred: Tensor | None = None
    generated: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers only."""
        tensors = {"values": self.values, "preferred": self.preferred, "generated": self.generated}
        lists = {name: None if x is None else x.tolist() for name, x in tensors.items()}
        return {"responses": self.responses.to_json(), **lists}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Answer":
        """What `to_json` gave."""
        values, preferred, generated = (
            None if saved[name] is None else torch.tensor(saved[name], dtype=torch.float64)
            for name in ("values", "preferred", "generated")
        )
        assert values is not None
        return cls(Responses.from_json(saved["responses"]), values, preferred, generated)


@dataclass(frozen=True)
class StageData:
    """All that a stage is fitted to but its base policies.

    Attributes
    ----------
    responses : Responses
    target : (B, K) float64
        Σ_j b_j g_j(y) in nats.
    preferred, generated
        As in `Answer`.
    step : float, optional
        The weight of the only payoff.
    """

    responses: Responses
    target: Tensor
    preferred: Tensor | None = None
    generated: Tensor | None = None
    step: float | None = None

    @classmethod
    def from_answers(cls, terms: Sequence[tuple[float, Answer]]) -> "StageData":
        """Payoffs with their weights b, all on one set of responses.

        Raises
        ------
        ValueError
            If the payoffs were answered on different responses.
        """
        first = terms[0][1]
        for _, answer in terms[1:]:
            if answer.responses.sequences != first.responses.sequences:
                raise ValueError("the payoffs of one stage were answered on different responses: ask them on one set")
        target = sum((b * answer.values for b, answer in terms[1:]), terms[0][0] * first.values)
        data = cls(first.responses, target)
        if len(terms) == 1:
            data = replace(data, preferred=first.preferred, generated=first.generated, step=terms[0][0])
        return data

    def picked(self, places: Sequence[Sequence[int]], weights: Sequence[Tensor]) -> "StageData":
        """The same prompts with some of their responses, which weigh what is given.

        Parameters
        ----------
        places : sequence of B sequences of int
            Which responses of each prompt, in their new order; at least one.
        weights : sequence of B tensors
            One number per response that is kept; they add up to 1.
        """
        old, pad = self.responses, torch.nn.utils.rnn.pad_sequence
        grid = pad([torch.tensor(row) for row in places], batch_first=True)
        exists = pad([torch.ones(len(row), dtype=torch.bool) for row in places], batch_first=True)
        rows = tuple(tuple(row[i] for i in chosen) for row, chosen in zip(old.sequences, places, strict=True))
        responses = Responses(rows, pad(list(weights), batch_first=True), old.enumerated, old.names)
        target, generated = (
            None if x is None else torch.where(exists, x.gather(1, grid), 0.0) for x in (self.target, self.generated)
        )
        assert target is not None
        return StageData(responses, target, _among(self.preferred, grid, exists), generated, self.step)

    @classmethod
    def from_pairs(
        cls, chosen: Sequence[Scored], rejected: Sequence[Scored], step: float, names: Sequence[str] = ()
    ) -> "StageData":
        """Labelled pairs of a fixed data set: response 0 of every prompt was preferred to response 1.

        Targets are ``step`` times the mean win rate over the pair less ½, the comparison with oneself included, hence
        ±step/4, so that `nashpo.llm.objectives.Pairwise` and ``Labelled`` have one margin, step/2. A trainer's data of
        columns, `nashpo.llm.preferences.PreferenceData`, hold P(y ≻ the other) − ½ instead, ±½ before the step.
        """
        count = len(chosen)
        preferred = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64).expand(count, 2, 2)
        responses = Responses.drawn(list(zip(chosen, rejected, strict=True)), names)
        return cls(responses, step * (preferred.mean(-1) - 0.5), preferred, step=step)


def _among(preferred: Tensor | None, grid: Tensor, exists: Tensor) -> Tensor | None:
    """(B, K, K) at the places (B, M): (B, M, M), ½ where there is nothing."""
    if preferred is None:
        return None
    K, M = preferred.shape[-1], grid.shape[-1]
    lines = preferred.gather(1, grid[:, :, None].expand(-1, -1, K))
    found = lines.gather(2, grid[:, None, :].expand(-1, M, -1))
    return torch.where(exists[:, :, None] & exists[:, None, :], found, 0.5)
