"""The wheel holds what the tree holds: a package missing from pyproject.toml is silently missing from the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "tabular", "llm", "figures")


def files_of_the_tree() -> set[str]:
    """Every file of the rooms that a user needs, as nashpo/…"""
    found = (path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in {".py", ".typed", ".yaml"})
    return {f"nashpo/{path.relative_to(ROOT).as_posix()}" for path in found}


def test_wheel_contents_equal_the_tree(tmp_path: Path) -> None:
    """Built from a copy without isolation, so that no package is fetched and the tree stays clean."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *ROOMS):
        source = ROOT / name
        if source.exists():
            subprocess.run(["cp", "-r", str(source), str(copy / name)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nashpo/")}
    tree = files_of_the_tree()
    assert inside == tree, f"missing {sorted(tree - inside)}, superfluous {sorted(inside - tree)}"
