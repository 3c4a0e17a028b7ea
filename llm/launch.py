"""Ready configurations of ``accelerate launch`` for ``python -m nashpo.llm train``.

    accelerate launch --config_file "$(python -m nashpo.llm.launch fsdp2)" -m nashpo.llm train RECIPE

They say how processes are started and parameters kept; what is computed, precision included, is the recipe's.
"""

import sys
from importlib.resources import files
from pathlib import Path

from nashpo.core.cli import BAD_INPUT, GOOD, suggestion

_SUFFIX = ".yaml"


def accelerate_configs() -> list[str]:
    """Names of the configurations, sorted."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _folder().glob(f"*{_SUFFIX}"))


def accelerate_config(name: str) -> Path:
    """The file of a configuration, for ``accelerate launch --config_file``.

    Parameters
    ----------
    name : str
        One of `accelerate_configs`.

    Raises
    ------
    ValueError
        If there is none of that name; names the nearest one.
    """
    path = _folder() / f"{name}{_SUFFIX}"
    if name not in accelerate_configs():
        raise ValueError(
            f"no configuration {name!r} is packaged; {suggestion(name, accelerate_configs(), 'there are')}"
        )
    return path


def _folder() -> Path:
    return Path(str(files("nashpo.llm"))) / "accelerate"


def main(arguments: list[str]) -> int:
    """Print the path of the configuration that is named, or all names."""
    try:
        print("\n".join(accelerate_configs()) if not arguments else accelerate_config(arguments[0]))
    except ValueError as error:
        print(f"nashpo: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return GOOD


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
