"""Where a recipe's models lie: a folder, or a name that the hub may have."""

from pathlib import Path

CONFIG, ADAPTER = "config.json", "adapter_config.json"


def weights_place(key: str, name: str, file: str = CONFIG) -> str:
    """The folder, or the name as it is; what is plainly a folder and not there is refused before the hub is asked.

    Parameters
    ----------
    key : str
        What the recipe calls it, for messages.
    name : str
    file : str
        What a folder must have; empty where any will do.

    Raises
    ------
    ValueError
        If there is no such folder, it is a file, lacks the file, or holds an adapter where a whole model is wanted.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if file == CONFIG and (folder / ADAPTER).exists():
            raise ValueError(f"{key} = {name!r} holds an adapter: merge it into its base before it is trained on")
        if not (folder / file).exists():
            raise ValueError(f"{key} = {name!r}: the folder has no {file}")
        return str(folder)
    if folder.exists():
        raise ValueError(f"{key} = {name!r} is a file: give the folder that it is in")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"{key} = {name!r}: there is no such folder")
    return name
