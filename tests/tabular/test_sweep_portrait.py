"""``nashpo sweep --portrait``: where the last policy goes on a game of one's own."""

from pathlib import Path

import numpy as np
import pytest

from nashpo.core.cli import main
from nashpo.core.rules import SPPO
from nashpo.tabular.experiments import portrait
from nashpo.tabular.families import interior


def test_a_sweep_draws_the_way_of_the_last_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "way.png"
    words = ["sweep", "interior:n=4", "--rule", "sppo,onpo", "--eta", "0.1,1", "--steps", "30", "--jobs", "1"]
    assert main([*words, "--out", str(tmp_path / "maps"), "--portrait", str(picture)]) == 0
    assert picture.read_bytes()[1:4] == b"PNG"
    assert "way.png" in capsys.readouterr().err


def test_a_portrait_of_several_contexts_is_refused_before_any_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "two.npy", np.full((2, 3, 3), 0.5))
    words = ["sweep", str(tmp_path / "two.npy"), "--rule", "sppo", "--eta", "0.1", "--steps", "5"]
    assert main([*words, "--out", str(tmp_path / "maps"), "--portrait", str(tmp_path / "way.png")]) == 2
    assert "several contexts" in capsys.readouterr().err
    assert not list((tmp_path / "maps").glob("**/*.npz"))


def test_the_reference_of_a_portrait_is_kept_apart_from_its_start() -> None:
    from nashpo.core.rules import INPO

    game, reference = interior(3, seed=1), np.array([0.6, 0.3, 0.1])
    near = portrait(game, [INPO(eta=0.5, tau=1.0)], 200, reference=reference)
    assert np.abs(near["portrait/trajectory"][0, -1] - near["portrait/target"][0]).max() < 1e-9
    assert np.isnan(portrait(game, [SPPO(eta=0.1)], 2)["portrait/target"]).any() == np.False_
