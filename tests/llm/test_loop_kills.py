"""Runs killed with SIGKILL at random moments end as if nothing had happened. `killing.py` does it more often."""

import subprocess
import sys
from pathlib import Path

from test_loop_rules import RECIPE

HERE = Path(__file__).parent


def test_five_kills_over_two_iterations(tmp_path: Path) -> None:
    """Weights, samples, judgements and figures of every step are bit-identical, and no committed phase changed."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("max_steps: 2", "max_steps: 12").replace("save_steps: 2", "save_steps: 4"))
    command = [sys.executable, str(HERE / "killing.py"), str(path), "--kills", "5", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert '"different": []' in found.stdout
    assert '"repeated": []' in found.stdout
