"""Results on disk: what is read, what is computed besides, what is told when something is wrong."""

import numpy as np
import pytest

from nashpo.figures import results as on_disk
from nashpo.tabular import experiments


@pytest.fixture
def counted(monkeypatch):
    """Experiments replaced by one that counts how often it runs."""
    calls = []

    def experiment():
        calls.append(1)
        return {"portrait/start": np.array([0.5, 0.5]), "portrait/rules": np.array(["sppo"])}

    monkeypatch.setattr(experiments, "EXPERIMENTS", {"portrait": experiment})
    return calls


def test_what_is_missing_is_computed_once_and_kept(counted, folder):
    measured = on_disk.load(folder)
    for _ in range(2):
        data = on_disk.complete(measured, ["portrait/start", "rates/T"], folder)
        assert data["portrait/start"].tolist() == [0.5, 0.5]
        assert data["portrait/rules"].tolist() == ["sppo"]
        assert data["rates/T"].tolist() == measured["rates/T"].tolist()
    assert len(counted) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["figures.npz", "results.npz"]


def test_what_was_measured_is_not_replaced(counted, folder):
    own = {"portrait/rules": np.array(["mine"])}
    assert on_disk.complete(own, ["portrait/start"], folder) == own
    assert not counted


def test_no_experiment_runs_that_no_figure_asks_for(counted, folder):
    on_disk.complete({}, ["rates/T"], folder)
    assert not counted


@pytest.mark.parametrize("spoil", ["format", "bytes"])
def test_what_was_kept_by_another_version_or_is_damaged_is_computed_anew(spoil, counted, folder, monkeypatch):
    on_disk.complete({}, ["portrait/start"], folder)
    if spoil == "format":
        monkeypatch.setattr(on_disk, "FORMAT", on_disk.FORMAT + 1)
    else:
        (folder / "figures.npz").write_bytes((folder / "figures.npz").read_bytes()[:100])
    on_disk.complete({}, ["portrait/start"], folder)
    assert len(counted) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(counted, folder):
    (folder / "figures.npz").mkdir()
    assert "portrait/start" in on_disk.complete({}, ["portrait/start"], folder)
    assert "portrait/start" in on_disk.complete({}, ["portrait/start"], None)
    assert len(counted) == 2


def test_missing_and_damaged_results_are_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no results folder .*nowhere: run `nashpo verify"):
        on_disk.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no results\.npz"):
        on_disk.load(tmp_path)
    for content in (b"", b"PK\x03\x04 not really", b"\x93NUMPY"):
        (tmp_path / "results.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"results\.npz is damaged") as caught:
            on_disk.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.savez(tmp_path / "results.npz", evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="damaged or not a file of arrays"):
        on_disk.load(tmp_path)
