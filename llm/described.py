"""A recipe in words, for the report of a run and for the model card.

Recipes are the plain mappings of ``recipe.yaml``; parts that are missing are left out. No arrays, and no torch.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashpo.core.citations import bibtex
from nashpo.core.rules import RULES

HIDDEN = re.compile(r"(?i)(^|_)(api_?key|password|secret|authorization)$|^(token|auth_token|hub_token|hf_token)$")
"""Names of settings whose text is shown to nobody."""
MASK = "(hidden)"
LONGEST = 60
"""Letters of one setting in a list of settings."""
UNTRUNCATED: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1, None),
    "top_k": (0, -1, None),
    "min_p": (0, None),
}
"""Values with which an engine draws from the policy itself."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RuleWords:
    """A rule for a reader.

    Attributes
    ----------
    name : str
        As printed, ``ONPO``; the recipe's own word where the package has no such rule.
    settings : str
        ``eta = 100``.
    formula : str
        The step, in one line; empty where it is not known.
    aim : str
        What the rule converges to; empty where it is not known.
    bibtex : str
        Entries of its papers; empty where they are not known.
    """

    name: str
    settings: str
    formula: str = ""
    aim: str = ""
    bibtex: str = ""


def rule_words(recipe: Json) -> RuleWords:
    """The rule of a recipe, ``rule: {name: onpo, eta: 100}`` or ``rule: onpo``."""
    spec = recipe.get("rule")
    spec = spec if isinstance(spec, Mapping) else {"name": spec}
    name = str(spec.get("name") or "no rule")
    settings = ", ".join(f"{key} = {value_words(value)}" for key, value in spec.items() if key != "name")
    kind = RULES.get(name.strip().lower().replace("_", "-"))
    if kind is None:
        return RuleWords(name, settings)
    formula = (inspect.getdoc(kind) or "").partition("\n")[0].replace("``", "")
    return RuleWords(kind.__name__, settings, formula, kind.aim.value, bibtex(kind.citations))


def departure(recipe: Json) -> str:
    """A warning where samples are not drawn from the policy at temperature 1 with every token kept; else empty."""
    sampling = _part(recipe, "sampling")
    changed = [
        f"{name} = {value_words(sampling[name])}"
        for name, exact in UNTRUNCATED.items()
        if name in sampling and sampling[name] not in exact
    ]
    if not changed:
        return ""
    return (
        f"Samples were drawn with {', '.join(changed)}. The rule's theory is about the policy at temperature 1 with"
        " every token kept: its guarantees say nothing about the distribution that was sampled here."
    )


def what_was_run(recipe: Json) -> list[tuple[str, str]]:
    """Model, judge, engine and the numbers of the run, as (what, text)."""
    sampling, training = _part(recipe, "sampling"), _part(recipe, "training")
    talk, built = _part(recipe, "conversation"), bool(_part(recipe, "model").get("build"))
    objective = _kind_words(recipe.get("objective"), "name")
    rows = [
        ("model", model_words(recipe.get("model"))),
        ("reference", model_words(recipe.get("reference"))),
        ("warm-up", "supervised, before the first iteration" if recipe.get("warmup") else ""),
        (
            "prompts",
            _data_words(recipe.get("prompts"))
            or ("those of the small model" if built and not recipe.get("pairs") else ""),
        ),
        ("pairs", _data_words(recipe.get("pairs"))),
        ("judge", _kind_words(recipe.get("judge"), "kind") or ("table: the game of the small model" if built else "")),
        ("engine", value_words(sampling.get("engine", ""))),
        ("responses per prompt, K", value_words(sampling.get("K", ""))),
        ("temperature", value_words(sampling.get("temperature", ""))),
        (
            "longest answer" if talk else "longest response",
            _counted(sampling["max_new_tokens"], "token") if sampling.get("max_new_tokens") else "",
        ),
        ("conversations", _talk_words(talk)),
        ("other side", _kind_words(talk.get("user"), "kind") or ("that of the small model" if talk and built else "")),
        ("objective", "" if objective == "default" else objective),
        ("learning rate", value_words(training.get("learning_rate", ""))),
        ("seed", value_words(recipe.get("seed", ""))),
    ]
    return [(what, text) for what, text in rows if text]


def _talk_words(talk: Json) -> str:
    """How many answers, and what takes the step."""
    if not talk:
        return ""
    state = talk.get("level") == "state"
    step = "a response is a whole one"
    if state:
        step = (
            "every answer takes the step by itself, on estimates of Q: for P(y ≻ π) in the rule stands the win rate"
            " against π of the whole conversations that go on from the answer y"
        )
    branches = f", {talk['branches']} continuations at later states" if state and talk.get("branches") else ""
    return f"up to {talk.get('turns')} answers; {step}{branches}"


def model_words(spec: Any) -> str:
    """``org/name``, with its revision and dtype, or how it was built."""
    if not isinstance(spec, Mapping):
        return str(spec) if spec else ""
    built = spec.get("build")
    name = str(spec.get("path") or "")
    if not name and isinstance(built, Mapping):
        name = f"a small one, built here ({_settings(built)})" if built else "a small one, built here"
    about = [f"{key} {value_words(spec[key])}" for key in ("revision", "dtype") if spec.get(key)]
    if isinstance(spec.get("adapter"), Mapping):
        about.append(f"adapter ({_settings(spec['adapter'])})")
    return ", ".join(filter(None, [name, *about]))


def masked(value: Any) -> Any:
    """The same data without passwords and keys."""
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(part, str) and part and HIDDEN.search(str(key)) else masked(part)
            for key, part in value.items()
        }
    return [masked(part) for part in value] if isinstance(value, list | tuple) else value


def recipe_text(recipe: Json) -> str:
    """The recipe as YAML, without passwords and keys."""
    from nashpo.llm.recipe.yaml_text import to_yaml

    return to_yaml(masked(recipe))


def base_model(recipe: Json) -> str:
    """The hub name of the model that a run began with; empty where it was built, or read from a folder."""
    path = _part(recipe, "model").get("path")
    named = isinstance(path, str) and re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", path) and not Path(path).exists()
    return str(path) if named else ""


def value_words(value: Any) -> str:
    """A setting in one line: numbers short, mappings as ``name value``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    if isinstance(value, list | tuple):
        words = [value_words(part) for part in value]
        return ("; " if any(" " in word for word in words) else " ").join(words)
    return "" if value is None else str(value)


def _counted(count: Any, thing: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{count} {thing}{'s' * (count != 1)}"


def _settings(spec: Json) -> str:
    """``name value`` of the settings that are set; long texts, as a judge's template, are cut."""
    words = [(str(key), value_words(part)) for key, part in masked(spec).items() if part not in (None, "", {}, [])]
    return ", ".join(f"{key} {text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}" for key, text in words)


def _kind_words(spec: Any, tag: str) -> str:
    """``table (settings)`` of a part that is told apart by a tag."""
    if not isinstance(spec, Mapping):
        return str(spec) if spec else ""
    rest = _settings({key: value for key, value in spec.items() if key != tag})
    return f"{value_words(spec.get(tag))} ({rest})" if rest else value_words(spec.get(tag))


def _data_words(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return str(spec) if spec else ""
    names = ("split", "limit", "heldout")
    about = [f"{key} {value_words(spec[key])}" for key in names if spec.get(key) not in (None, "", 0)]
    return ", ".join(filter(None, [str(spec.get("path") or ""), *about]))


def _part(recipe: Json, name: str) -> Json:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}
