"""Who plays in an arena: the policies of runs (start, reference, iterates), and models in folders or on the hub.

Policies that share a tokenizer and a way of loading are a team. Nothing is loaded here but tokenizers and
configurations. Shapes: none.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nashpo.llm.encoding import Encoder
from nashpo.llm.engines.engine import EngineContext
from nashpo.llm.judges.weights import find_folder, fingerprint
from nashpo.llm.loop.loading import load_model, load_tokenizer
from nashpo.llm.loop.phase import MANIFEST, key_of
from nashpo.llm.loop.policies import Source, WholeFolders
from nashpo.llm.loop.setup import policies_of, tiny_prompts
from nashpo.llm.loop.start import base
from nashpo.llm.loop.work import read_work
from nashpo.llm.mixture import Parts
from nashpo.llm.prompts import Prompt
from nashpo.llm.reading import reading
from nashpo.llm.recipe.parsing import read
from nashpo.llm.recipe.schema import ModelSpec, Recipe, load_recipe

RECIPE = "recipe.yaml"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ONE_ITERATE = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True)
class Entrant(Source):
    """A policy as engines get it, named by its weights: what is drawn does not depend on where they lie.

    Attributes
    ----------
    label : str
        For people.
    at : str
        Its name within ``policies``.
    """

    label: str
    at: str

    @property
    def parts(self) -> Parts:
        """The policy, as a mixture of one."""
        return [(1.0, partial(self.policies.use, self.at))]

    def folder(self) -> Path:
        """Where its weights lie."""
        return self.policies.path(self.at)

    @property
    def weights(self) -> str:
        """The hash of its weights."""
        return self.factors[0][1]


@dataclass
class Team:
    """Policies that share a tokenizer and a way of loading.

    Attributes
    ----------
    name : str
        Of the run or the model.
    spec : ModelSpec
    encoder : Encoder
    context : EngineContext
    vocabulary : int
        Of the model, which may have more rows than its tokenizer has tokens.
    positions : int, optional
        The model's.
    recipe : Recipe, optional
        Of a run.
    origin : str
        Folder or name of the model before any training.
    entrants : list of Entrant
    """

    name: str
    spec: ModelSpec
    encoder: Encoder
    context: EngineContext
    vocabulary: int
    positions: int | None
    recipe: Recipe | None
    origin: str
    entrants: list[Entrant] = field(default_factory=list)

    def heldout(self) -> list[Prompt]:
        """The run's held-out prompts; of a run of a tiny model, all of its prompts.

        Raises
        ------
        ValueError
            If it holds none out.
        """
        assert self.recipe is not None
        own = tiny_prompts(Path(self.recipe.output_dir), self.recipe)
        plan = read_work(self.recipe, own, self.encoder, self.vocabulary)
        if plan.heldout:
            return list(plan.heldout)
        if own is not None:
            return list(plan.iterations[0].prompts)
        raise ValueError(f"the run {self.name} holds no prompts out (heldout = 0): give --prompts FILE")


class _Later:
    """Policies that are made when the first of them is used: some load a base model at once."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)

    def release(self) -> None:
        """Forget what is held in memory, if anything was."""
        if self._made is not None:
            self._made.release()


def enter(arguments: Sequence[str], model: Mapping[str, Any]) -> list[Team]:
    """The teams that the command line names, every policy once.

    Parameters
    ----------
    arguments : sequence of str
        ``RUN``, ``RUN@N`` (what iteration N wrote; 0 is the start), a folder of weights, or a name on the hub.
    model : mapping
        Keys of ``model`` in a recipe, for folders of weights and names on the hub.

    Raises
    ------
    ValueError
        If there is no such run, iterate or model, or fewer than two different policies are left.
    """
    runs: dict[Path, list[int] | None] = {}
    places: list[Path | str] = []
    for argument in dict.fromkeys(arguments):
        run, number = _run(argument)
        if run is None:
            places.append(argument)
            continue
        if run not in runs:
            places.append(run)
            runs[run] = []
        chosen = runs[run]
        runs[run] = None if chosen is None or number is None else [*chosen, number]
    alone = len(places) == 1
    teams = [
        _run_team(place, label, runs[place], alone) if isinstance(place, Path) else _model_team(place, label, model)
        for place, label in zip(places, _labels(places))
    ]
    _each_once(teams)
    found = [entrant.label for team in teams for entrant in team.entrants]
    if len(found) < 2:
        raise ValueError(f"an arena needs two policies, and there is {', '.join(found) or 'none'}: name more runs")
    return [team for team in teams if team.entrants]


def _run(argument: str) -> tuple[Path | None, int | None]:
    """The run that an argument names, and its iterate; None where it is no run."""
    if (Path(argument) / RECIPE).is_file():
        return Path(argument), None
    one = _ONE_ITERATE.fullmatch(argument)
    if one is not None and not Path(argument).exists():
        if not (Path(one[1]) / RECIPE).is_file():
            raise ValueError(f"{argument}: there is no run at {one[1]} (no {RECIPE} in it)")
        return Path(one[1]), int(one[2])
    return None, None


def _labels(places: Sequence[Path | str]) -> list[str]:
    """What runs and models are called: the shortest ends of folders that tell them apart, names on the hub as are."""
    parts = [Path(os.path.abspath(place)).parts[1:] if Path(place).exists() else (str(place),) for place in places]
    labels: list[str] = []
    for size in range(1, max(len(part) for part in parts) + 1):
        labels = ["/".join(part[-size:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _each_once(teams: Sequence[Team]) -> None:
    """Keep the first of policies with the same weights, tokenizer and way of loading."""
    seen: set[str] = set()
    for team in teams:
        ways = [team.spec.dtype, team.spec.chat_template_kwargs, team.spec.attention]
        revision = None if team.spec.tokenizer else team.spec.revision
        words = fingerprint_of(team.spec.tokenizer or team.origin, revision, small=True)
        kept = []
        for entrant in team.entrants:
            key = key_of(entrant.weights, ways, words)
            if key not in seen:
                kept.append(entrant)
            seen.add(key)
        team.entrants[:] = kept


# -------------------------------------------------------------------------------------------------------------- runs


def _run_team(run: Path, name: str, numbers: list[int] | None, alone: bool) -> Team:
    recipe = load_recipe(str(run / RECIPE), [f"output_dir={json.dumps(str(run))}"])
    there = _iterates(run)
    if not _complete(run / "start") or (numbers is None and not there):
        raise ValueError(f"{run} has no iterates yet: nashpo train has to finish an iteration first")
    missing = [n for n in numbers or () if n and n not in there]
    if missing:
        raise ValueError(f"{run}@{missing[0]}: there are no weights of this iterate; {run} has {there or 'none'}")
    origin = base(run, recipe)
    begin = str(run / "start") if (run / "start" / "config.json").exists() else origin
    tokenizer = load_tokenizer(recipe.model, origin)
    team = Team(name, recipe.model, *_read(recipe.model, origin, tokenizer), recipe, origin)
    policies: Any = _Later(lambda: policies_of(run, recipe, begin, tokenizer))
    reference = begin if recipe.reference is None else str(recipe.reference.path)
    first = {"start": begin, "reference": reference} if numbers is None else {"start": begin} if 0 in numbers else {}
    own = {recipe.model.path: recipe.model.revision}
    below = [] if recipe.model.adapter is None else [fingerprint_of(begin, own.get(begin))]
    labels: dict[str, tuple[str, list[str]]] = {}
    for at, place in first.items():
        weights = fingerprint_of(place, own.get(place))
        labels.setdefault(weights, (at, []))[1].append(at)
    for number in there if numbers is None else sorted(n for n in set(numbers) if n):
        at = f"iterations/{number:03d}/model"
        weights = fingerprint_of(str(run / at), None)
        weights = key_of(*below, weights) if below else weights
        labels.setdefault(weights, (at, []))[1].append(f"iteration {number}")
    for weights, (at, found) in labels.items():
        label = " = ".join(found) if alone else f"{name}: {' = '.join(found)}"
        team.entrants.append(_entrant(label, at, weights, policies))
    return team


def _iterates(run: Path) -> list[int]:
    """Numbers of the iterations whose weights are there."""
    folders = sorted(run.glob("iterations/*/model"))
    return [int(folder.parent.name) for folder in folders if folder.parent.name.isdigit() and _complete(folder)]


def _complete(folder: Path) -> bool:
    """Whether the phase of a run's folder was committed."""
    try:
        return json.loads((folder / MANIFEST).read_bytes())["complete"] is True
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is not a manifest ({error}): look at the run") from None


# ------------------------------------------------------------------------------------------------------------ models


def _model_team(argument: str, label: str, settings: Mapping[str, Any]) -> Team:
    place = Path(argument)
    if place.exists() and not (place / "config.json").is_file():
        raise ValueError(f"{argument} is neither a run (no {RECIPE}) nor a folder of weights (no config.json)")
    if not place.exists() and not (_HUB_NAME.fullmatch(argument) and not argument.startswith(".")):
        raise ValueError(f"{argument}: there is no such run or folder of weights, and it is no name on the hub")
    spec: ModelSpec = read(ModelSpec, {**settings, "path": argument}, "model")
    folder = _found(argument, spec.revision)
    tokenizer = load_tokenizer(spec, folder)
    team = Team(place.name, spec, *_read(spec, str(folder), tokenizer), None, str(folder))
    policies: Any = WholeFolders(Path(), {"model": folder}, lambda path: load_model(spec, path), tokenizer)
    team.entrants.append(_entrant(label, "model", fingerprint_of(argument, spec.revision), policies))
    return team


def _found(path: str, revision: str | None) -> Path:
    try:
        return find_folder(path, revision)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("judge: ")) from None


# -------------------------------------------------------------------------------------------------------------- both


def fingerprint_of(path: str, revision: str | None, small: bool = False) -> str:
    """A hash of the weights in a folder, or the commit of a name on the hub; ``small``: only fetch what is no weights.

    Raises
    ------
    ValueError
        If they are not there.
    """
    try:
        return key_of(fingerprint(path, find_folder(path, revision, small)))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("judge: ")) from None


def _entrant(label: str, at: str, weights: str, policies: Any) -> Entrant:
    name = f"{re.sub(r'[^A-Za-z0-9.]+', '-', label).strip('-.')[:60]}-{weights[:8]}"
    return Entrant(name, ((1.0, weights),), policies, label, at)


def _read(spec: ModelSpec, path: str, tokenizer: Any) -> tuple[Encoder, EngineContext, int, int | None]:
    """Encoder, engine's context, vocabulary and positions of a model whose weights are not read."""
    found = reading(spec, path, tokenizer)
    return found.encoder, found.context, found.limits.vocabulary, found.limits.positions
