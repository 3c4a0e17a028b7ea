"""What ``nashpo offline`` learns from: a file of preference pairs, or an instance whose truth is known.

Shapes: policies are (*batch_shape, n) probabilities over the responses of the data, prompts first.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.cli import suggestion
from nashpo.tabular.files import read_policy
from nashpo.tabular.game import Game
from nashpo.tabular.instances import INSTANCES, OfflineInstance
from nashpo.tabular.json_lines import text_lines
from nashpo.tabular.pair_counts import ReadReport
from nashpo.tabular.preference_files import read_preferences
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.raw_files import named
from nashpo.tabular.specs import arguments_of

DEFAULT_N = 1600
EXAMPLE = "rare-arms:N=1600,seed=0"
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Preferences:
    """Preference data and where they came from."""

    data: PreferenceData
    source: str
    report: ReadReport | None = None
    instance: OfflineInstance | None = None

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return int(np.prod(self.data.batch_shape, dtype=int))

    def label(self, prompt: int, response: int) -> str:
        """A response's text, where the data have it, else its name or number."""
        if self.data.responses is not None:
            return self.data.responses[prompt][response]
        return str(response) if self.data.names is None else self.data.names[response]

    @property
    def counts(self) -> str:
        """How many pairs, ties, prompts and responses there are."""
        if self.report is not None:
            return str(self.report)
        data = self.data
        prompts = f" over {self.prompts:,} prompts" if self.prompts > 1 else ""
        return (
            f"{float(data.N):,.0f} pairs{prompts}; {data.n:,} responses{' each' if prompts else ''};"
            f" {float(np.sum(data.ties)):,.0f} ties"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The data for JSON."""
        data = self.data
        known = {
            "source": self.source,
            "N": float(data.N),
            "ties": float(np.sum(data.ties)),
            "prompts": self.prompts,
            "responses": int(data.exists.sum()),
            "n": data.n,
        }
        if self.report is not None:
            counted = ("pairs", "soft_labels", "skipped", "single_response_prompts")
            known |= {name: getattr(self.report, name) for name in counted}
        if self.instance is not None:
            known |= {"instance": self.instance.name, "bradley_terry": self.instance.reward is not None}
        return known


def is_judged_file(path: str) -> bool:
    """Whether a file's first line holds judged responses: an object with ``responses`` and without ``chosen``."""
    try:
        _, line = next(text_lines(Path(path)))
        record = json.loads(line)
    except (OSError, ValueError, RecursionError, StopIteration):  # whoever reads the file tells what is wrong with it
        return False
    return isinstance(record, dict) and "responses" in record and "chosen" not in record


def load_preferences(text: str, ignore: tuple[str, ...] = ()) -> Preferences:
    """Data from a file, or drawn from an instance such as ``rare-arms:N=1600,seed=0``.

    Raises
    ------
    ValueError
        As `read_preferences` and `instance_from_spec`.
    """
    if is_instance(text):
        instance, N, seed = instance_from_spec(text)
        return Preferences(instance.sample(N, seed), text, None, instance)
    data, report = read_preferences(text, ignore=ignore)
    return Preferences(data, text, report)


def is_instance(text: str) -> bool:
    """Whether a text names an instance (rightly or with a slip) rather than a file."""
    name = text.partition(":")[0].strip()
    return _key(name) in INSTANCES or (name != "" and not set(name) & set("./\\") and not Path(text).exists())


def instance_from_spec(text: str) -> tuple[OfflineInstance, int, int]:
    """Instance, number of pairs and seed from ``NAME`` or ``NAME:KEY=VALUE,...``.

    Parameters
    ----------
    text : str
        NAME is a key of `INSTANCES` (``-`` may stand for ``_``); the keys are N, seed and the generator's arguments.

    Raises
    ------
    ValueError
        Unknown instance or argument, a value of the wrong kind, or one that the generator refuses.
    """
    name = text.partition(":")[0]
    if _key(name) not in INSTANCES:
        known = [key.replace("_", "-") for key in INSTANCES]
        raise ValueError(f"{text!r} is no file and no instance; {suggestion(name.strip(), known, 'the instances are')}")
    make: Callable[..., OfflineInstance] = INSTANCES[_key(name)]
    accepted: dict[str, Any] = {k: p.default for k, p in inspect.signature(make).parameters.items()}
    kinds: dict[str, type] = {k: float if isinstance(v, float) else int for k, v in accepted.items()}
    kinds |= {"N": int, "seed": int}
    given: dict[str, Any] = {"N": DEFAULT_N, "seed": 0}
    for part in arguments_of(text, EXAMPLE):
        argument, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"{part!r} is not KEY=VALUE; write for example {EXAMPLE}")
        if argument not in kinds:
            raise ValueError(f"{name} has no argument {argument!r}; {suggestion(argument, kinds)}")
        try:
            given[argument] = kinds[argument](value)
        except ValueError:
            what = "a whole number" if kinds[argument] is int else "a number"
            raise ValueError(f"{argument} is {value!r}, but must be {what}") from None
    if given["seed"] < 0:
        raise ValueError(f"seed is {given['seed']}, but must be >= 0")
    try:
        instance = make(**{k: v for k, v in given.items() if k in accepted})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return instance, given["N"], given["seed"]


def _key(name: str) -> str:
    return name.strip().replace("-", "_")


def load_data_policy(path: str | None, preferences: Preferences, option: str) -> np.ndarray | None:
    """A policy on the data from a file; None where none was given.

    Parameters
    ----------
    path : str, optional
        As of `read_policy`: .npy, .npz (the array ``policy``), .csv, .json; responses of a single prompt may be named
        by their text. Or .jsonl with a line for every prompt, ``{"prompt": ..., "policy": {response: probability}}``,
        as ``--save`` writes it.
    option : str
        For messages, such as ``--reference``.

    Raises
    ------
    ValueError
        As `read_policy`; a line, prompt or response that does not fit the data.
    """
    if path is None:
        return None
    data = preferences.data
    try:
        if path.lower().endswith((".jsonl", ".jsonl.gz")):
            with named(path):
                return _policy_lines(Path(path), data)
        names = data.names
        if names is None and data.responses is not None and len(data.responses) == 1:
            names = data.responses[0]
        return np.asarray(read_policy(path, Game(data.win_rates(), mask=data.mask, names=names)))
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None


def _policy_lines(path: Path, data: PreferenceData) -> np.ndarray:
    if data.prompts is None or data.responses is None:
        raise ValueError("lines of prompts fit data that have texts; give .npy, .csv or .json")
    place = {prompt: k for k, prompt in enumerate(data.prompts)}
    policy = np.zeros((len(place), data.n))
    missing = set(place)
    for number, line in text_lines(path):
        prompt, probabilities = _policy_record(number, line)
        if prompt not in place:
            raise ValueError(f"line {number}: the data have no prompt {_short(prompt)!r}")
        if prompt not in missing:
            raise ValueError(f"line {number}: the prompt {_short(prompt)!r} occurs twice")
        missing.remove(prompt)
        column = {response: k for k, response in enumerate(data.responses[place[prompt]])}
        for response, probability in probabilities.items():
            if response not in column:
                raise ValueError(f"line {number}: the data have no response {_short(response)!r} to this prompt")
            if not isinstance(probability, int | float) or isinstance(probability, bool) or not probability >= 0:
                raise ValueError(f"line {number}: the probability of {_short(response)!r} must be a number >= 0")
            policy[place[prompt], column[response]] = probability
        total = policy[place[prompt]].sum()
        if not abs(total - 1) <= _SUM_TOLERANCE:
            raise ValueError(f"line {number}: the probabilities sum to {total:.9g}, not to 1; divide them by their sum")
    if missing:
        first = next(prompt for prompt in data.prompts if prompt in missing)
        raise ValueError(f"no line for {len(missing)} of {len(place)} prompts, the first of them {_short(first)!r}")
    return policy / policy.sum(axis=-1, keepdims=True)


def _policy_record(number: int, line: str) -> tuple[str, dict[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    found = record if isinstance(record, dict) else {}
    if not isinstance(found.get("prompt"), str) or not isinstance(found.get("policy"), dict):
        raise ValueError(f'line {number} must be {{"prompt": ..., "policy": {{response: probability}}}}')
    return found["prompt"], found["policy"]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
