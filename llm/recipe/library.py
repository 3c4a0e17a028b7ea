"""The recipes that come with the package, by name."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from nashpo.core.cli import suggestion

SUFFIXES = (".yaml", ".yml")


def names() -> list[str]:
    """Every packaged recipe, sorted."""
    return sorted(found.name[: -len(".yaml")] for found in _folder().iterdir() if found.name.endswith(".yaml"))


def about(name: str) -> str:
    """The first line of a packaged recipe: what it is."""
    first = (_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip()


def text(source: str) -> tuple[str, str]:
    """A recipe's YAML, and what it is called in messages.

    Parameters
    ----------
    source : str
        A path, which ends in .yaml or .yml or has a folder in it, or the name of a packaged recipe. A file goes before
        a packaged recipe.

    Raises
    ------
    ValueError
        If there is no such file or name; names the nearest one.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _decoded(path.read_bytes(), str(path)), str(path)
    if path.suffix in SUFFIXES or len(path.parts) != 1:
        raise ValueError(f"recipe {source}: there is no such file; packaged recipes are {', '.join(names())}")
    if source not in names():
        raise ValueError(f"recipe {source!r} is neither a file nor packaged; {suggestion(source, names(), 'packaged')}")
    return (_folder() / f"{source}.yaml").read_text(encoding="utf-8"), f"the packaged recipe {source}"


def _folder() -> Traversable:
    return files("nashpo.llm") / "recipes"


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{place} is no text in UTF-8") from None
