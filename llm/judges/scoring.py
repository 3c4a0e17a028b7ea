"""Judges that read each response by itself: one pass per response, however many it is compared with.

A conversation is read as one text with its prompt. What is longer than the model reads is never cut: the judge abstains
from the pair, which counts as an abstention.

Shapes: U different responses give U readings (U, D); the verdict on a pair is a function of its parts' readings.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nashpo.llm.judges.judge import Pair, Text, Verdict, canonical
from nashpo.llm.judges.model_judge import ModelJudge, too_long
from nashpo.llm.judges.turns import Identity, identity
from nashpo.llm.transcript import Response

Part = tuple[str, Identity | None]
"""A prompt, and which response to it; None for the prompt alone."""


class ScoringJudge(ModelJudge):
    """Base of judges whose verdict is odd in the readings of the two responses: P(b, a) = 1 − P(a, b)."""

    antisymmetric = True
    most: int | None = None
    """Longest input in tokens."""

    def encode(self, prompt: Text, response: Response | None) -> list[int]:
        """Token ids of a response behind its prompt, or of the prompt alone."""
        raise NotImplementedError

    def check_conversation(self) -> None:
        """After `check`, that it can read a conversation of several turns, before any is sampled.

        Raises
        ------
        ValueError
            If its chat template refuses the roles or leaves a turn out.
        """
        said = [("assistant", "Yes."), ("user", "Why?"), ("assistant", "So.")]
        self.encode("Is it?", [{"role": role, "content": content} for role, content in said])

    def parts(self, pair: Pair) -> tuple[Response | None, ...]:
        """What is read behind the prompt of a pair: the two responses, and None for the prompt alone."""
        return pair.first, pair.second

    def verdicts(self, *readings: Tensor) -> list[Verdict]:
        """Of N pairs, from the readings (N, D) of each of their parts."""
        raise NotImplementedError

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """A verdict on each pair; an abstention where a response is longer than the model reads."""
        if not pairs:
            return []
        self.ready()
        rows: dict[Part, list[int]] = {}
        parts: list[list[Part]] = []
        for pair in pairs:
            prompt, own = canonical(pair.prompt), self.parts(pair)
            parts.append([(prompt, None if part is None else identity(part)) for part in own])
            for key, part in zip(parts[-1], own, strict=True):
                if key not in rows:
                    rows[key] = self.encode(pair.prompt, part)
        long = {key: verdict for key, row in rows.items() if (verdict := too_long(len(row), self.most))}
        answers = [next((long[key] for key in keys if key in long), None) for keys in parts]
        asked = [n for n, answer in enumerate(answers) if answer is None]
        if asked:
            kept = {key: place for place, key in enumerate(key for key in rows if key not in long)}
            found = self.read([rows[key] for key in kept])
            readings = [found[[kept[key] for key in keys]] for keys in zip(*(parts[n] for n in asked), strict=True)]
            for n, verdict in zip(asked, self.verdicts(*readings), strict=True):
                answers[n] = verdict
        return [answer for answer in answers if answer is not None]
