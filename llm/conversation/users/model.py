"""The other side as a language model, which is shown the conversation and asked for the next message.

The question, `ModelUserConfig.instruction` with the transcript in it, goes through the model's chat template as one
user's message, or as it is where there is none. An answer that is empty or has the end mark in it ends the
conversation, and so does a transcript that is too long for the model, which is counted and logged.

Its weights are read when it is first asked and given back by ``close``. Shapes: N dialogues are answered by N messages.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nashpo.llm.conversation.user import Dialogue, Text
from nashpo.llm.conversation.users.config import ModelUserConfig
from nashpo.llm.conversation.users.draws import derived
from nashpo.llm.conversation.users.messages import conversation
from nashpo.llm.engines.config import ContinuousConfig, RemoteConfig, TransformersConfig
from nashpo.llm.engines.engine import Completion, Engine
from nashpo.llm.judges.weights import find_folder, fingerprint
from nashpo.llm.loop.loading import load_model, load_tokenizer
from nashpo.llm.loop.policies import Source, WholeFolders
from nashpo.llm.loop.sampling import NOT_IN_KEY
from nashpo.llm.prompts import Prompt, prompt_text
from nashpo.llm.reading import Reading, reading
from nashpo.llm.recipe.schema import ModelSpec
from nashpo.llm.transcript import Message

log = logging.getLogger(__name__)
KEY = "conversation.user"
_PLACES = (("judge: ", f"{KEY}.path: "), ("model.tokenizer", f"{KEY}.tokenizer"), ("sampling.", f"{KEY}.sampling."))
"""How messages of parts that others use too begin, and how they begin here."""


@dataclass(frozen=True)
class _Loaded:
    """What is asked; weights come when a policy is used."""

    engine: Engine
    policy: Source
    policies: WholeFolders


class ModelUser:
    """A language model as the other side.

    Parameters
    ----------
    config : ModelUserConfig
    device : str
        Where it computes.

    Attributes
    ----------
    counts : Counter
        ``too_long``: conversations that ended because the model could not read them.
    """

    name = "model"

    def __init__(self, config: ModelUserConfig, device: str) -> None:
        self.config = config
        self.shared = isinstance(config.sampling, RemoteConfig)
        self.counts: Counter[str] = Counter()
        self._device = torch.device(device)
        self._checked = False
        self._spec = ModelSpec(
            path=config.path,
            revision=config.revision,
            dtype=config.dtype,
            attention=config.attention,
            trust_remote_code=config.trust_remote_code,
            tokenizer=config.tokenizer,
            chat_template_kwargs=config.chat_template_kwargs,
        )

    @cached_property
    def _folder(self) -> Path:
        return find_folder(self.config.path, self.config.revision)

    @cached_property
    def _read(self) -> Reading:
        folder = self._folder
        return reading(self._spec, str(folder), load_tokenizer(self._spec, folder, f"{KEY}.path"))

    @cached_property
    def _loaded(self) -> _Loaded:
        context = replace(self._read.context, device=self._device)
        engine = self.config.sampling.build(context)
        policies = WholeFolders(Path(), {"user": self._folder}, self._load, context.tokenizer)
        return _Loaded(engine, Source("user", ((1.0, "user"),), policies), policies)

    def _load(self, folder: Path) -> nn.Module:
        return load_model(self._spec, folder, f"{KEY}.path").to(self._device)

    def describe(self) -> dict[str, Any]:
        """What identifies weights and tokenizer, the question, and the engine.

        Raises
        ------
        ValueError
            If they are not there.
        """
        config = self.config
        with _placed():
            words = None if config.tokenizer is None else fingerprint(config.tokenizer, find_folder(config.tokenizer))
            engine = {k: v for k, v in self._loaded.engine.describe().items() if k not in NOT_IN_KEY}
            return {
                "user": self.name,
                "weights": fingerprint(config.path, self._folder),
                "tokenizer": words,
                "dtype": config.dtype,
                "attention": config.attention,
                "chat_template_kwargs": config.chat_template_kwargs,
                "instruction": config.instruction,
                "end": config.end,
                "role": config.role,
                "engine": engine,
                "reproducible": bool(engine.get("reproducible")),
            }

    def check(self) -> None:
        """That the tokenizer is there, the engine can be asked, and the weights can be read where they are read here.

        Raises
        ------
        ValueError
        """
        if self._checked:
            return
        self.check_room([""])
        with _placed():
            self._loaded.engine.check()
            if isinstance(self.config.sampling, TransformersConfig | ContinuousConfig):
                with self._loaded.policies.use("user"):
                    pass
                self._loaded.policies.release()
        self._checked = True

    def check_room(self, prompts: Sequence[Text]) -> None:
        """That a question about the shortest conversation behind one of the prompts fits its model with an answer.

        Neither engine nor weights are needed.

        Raises
        ------
        ValueError
            If it fits behind none of them: the other side could never be asked.
        """
        with _placed():
            most, new = self._read.limits.positions, self.config.sampling.max_new_tokens
        if most is None or not prompts:
            return
        silent = ({"role": "assistant", "content": ""},)
        asked = sorted((self._text(Dialogue("", prompt, silent)) for prompt in prompts), key=len)
        shortest: int | None = None
        for text in asked:
            length = len(self._ids(text)[1])
            if length + new <= most:
                return
            shortest = length if shortest is None else min(shortest, length)
        assert shortest is not None
        room = most - shortest
        mend = (
            f"lower it well below {room}, so that the assistant's answers have room too"
            if room > 1
            else f"shorten {KEY}.instruction, or take a model with more positions"
        )
        raise ValueError(
            f"{KEY}.sampling.max_new_tokens = {new} does not fit the {most} positions of {KEY}.path ="
            f" {self.config.path!r} behind a question of {shortest} tokens, the shortest that there can be: it would"
            f" never be asked, and every conversation would end after one answer; {mend}"
        )

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        """What the model says next in each conversation; a draw follows from the seed and the dialogue's key.

        Raises
        ------
        ValueError
            On a prompt of token ids, and as the engine.
        """
        asked = {place: prompt for place, one in enumerate(dialogues) if (prompt := self._question(one)) is not None}
        if len(asked) < len(dialogues):
            self.counts["too_long"] += len(dialogues) - len(asked)
            log.warning(
                "%d of %d conversations are too long for the other side and end: with"
                " %s.sampling.max_new_tokens = %d they do not fit the %s positions of its model",
                len(dialogues) - len(asked),
                len(dialogues),
                KEY,
                self.config.sampling.max_new_tokens,
                self._read.limits.positions,
            )
        if not asked:
            return [None] * len(dialogues)
        with _placed():
            # A seed of its own, so that its noise is not that of the assistant's answers under the same key.
            drawn = self._loaded.engine.sample(self._loaded.policy, list(asked.values()), derived(seed, "model"))
        said = {place: self._message(row[0]) for place, row in zip(asked, drawn, strict=True)}
        return [said.get(place) for place in range(len(dialogues))]

    def _question(self, dialogue: Dialogue) -> Prompt | None:
        """The prompt that asks for the next message; None where it does not fit the model."""
        text, ids = self._ids(self._text(dialogue))
        most = self._read.limits.positions
        if most is not None and len(ids) + self.config.sampling.max_new_tokens > most:
            return None
        return Prompt(dialogue.key, text, tuple(ids))

    def _text(self, dialogue: Dialogue) -> str:
        return self.config.instruction.replace("{conversation}", prompt_text(conversation(dialogue)))

    def _ids(self, text: str) -> tuple[Text, list[int]]:
        """A question as the model reads it, through its chat template where it has one, and its tokens."""
        encoder, asked = self._read.encoder, [{"role": "user", "content": text}]
        found: Text = text if getattr(encoder.tokenizer, "chat_template", None) is None else asked
        return found, encoder.prompt(found)

    def _message(self, completion: Completion) -> Message | None:
        text = completion.text.strip()
        return {"role": self.config.role, "content": text} if text and self.config.end not in text else None

    def close(self) -> None:
        """Forget the weights, and what the engine holds."""
        if "_loaded" in self.__dict__:
            self._loaded.engine.close()
            self._loaded.policies.release()


@contextmanager
def _placed() -> Iterator[None]:
    """Errors of parts that others use too, told with their place in the recipe."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        for begin, here in _PLACES:
            if type(error) is ValueError and told.startswith(begin):
                raise ValueError(here + told.removeprefix(begin)) from error
        raise
