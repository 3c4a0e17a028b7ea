"""The command `nashpo figures`, through the switchboard where exit statuses matter."""

import json

import numpy as np
import pytest
from run_folder import write_run

from nashpo.core import cli
from nashpo.figures import commands, style
from nashpo.figures import results as on_disk


@pytest.fixture(autouse=True)
def quick(monkeypatch, results):
    """Experiments answered from the synthetic results, pictures coarse."""
    from nashpo.tabular import experiments

    def group(name):
        return lambda: {key: values for key, values in results.items() if key.startswith(f"{name}/")}

    names = ("portrait", "step_sizes", "comal", "pessimism", "policies")
    monkeypatch.setattr(experiments, "EXPERIMENTS", {name: group(name) for name in names})
    monkeypatch.setattr(style, "PNG_DPI", 40)
    save = style.save
    monkeypatch.setattr(style, "save", lambda fig, path: save(fig, path, dpi=40))


def test_all_figures_of_a_folder(folder, capsys):
    assert commands.main(["--results", str(folder)]) == 0
    pictures = sorted(path.name for path in (folder / "figures").iterdir())
    names = (
        "comal_map", "offline_policies", "pessimism_map", "phase_portrait", "rates", "refuted_bound", "step_sizes",
    )  # fmt: skip
    assert pictures == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf"))
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(names)
    assert "sweep" in err
    assert "run `nashpo sweep`" in err


def test_one_figure_elsewhere_as_json(folder, tmp_path, capsys):
    out = tmp_path / "a" / "b"
    assert commands.main(["--results", str(folder), "--only", "rates", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == {"rates": [str(out / f"rates.{kind}") for kind in ("png", "svg", "pdf")]}
    assert told["left_out"] == {}


def test_without_results_the_experiments_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["--only", "comal_map", "--only", "phase_portrait"]) == 0
    assert {path.stem for path in (tmp_path / "nashpo-figures").iterdir()} == {"comal_map", "phase_portrait"}


def test_a_sweep_is_drawn(results, tmp_path):
    np.savez(tmp_path / "sweep.npz", **{key: results[key] for key in results if key.startswith("sweep/")})
    assert commands.main(["--results", str(tmp_path), "--only", "sweep"]) == 0
    assert (tmp_path / "figures" / "sweep.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--results", "nowhere"], "no results folder nowhere"),
        (["--only", "nope"], "no figure 'nope'"),
        (["--only", "rates"], "lack rates/T"),
        (["--results", "damaged"], "damaged"),
        (["--only", "comal_map", "--out", "occupied"], "occupied"),
        (["--onyl", "rates"], "--only"),
        (["extra"], "extra"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / on_disk.RESULTS).write_bytes(b"PK")
    (tmp_path / "occupied").write_text("a file where a folder should be")
    assert cli.main(["figures", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert told in err


def test_help_has_an_example(capsys):
    assert cli.main(["figures", "--help"]) == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert "nashpo figures --results" in out


def test_the_figures_of_a_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", done=1, evaluation=False)
    assert commands.main(["--results", str(run), "--only", "training_curves", "--only", "training_time"]) == 0
    assert {path.name for path in (run / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("training_curves", "training_time") for kind in ("png", "svg", "pdf")
    }


@pytest.mark.parametrize(
    ("figure", "told"),
    [("rates", "rates is no figure of"), ("training_gap", "'training_gap' cannot be drawn: no exact evaluation")],
)
def test_a_figure_that_a_run_has_not_is_one_line(figure, told, tmp_path, capsys):
    run = write_run(tmp_path / "run", done=1, evaluation=False)
    assert cli.main(["figures", "--results", str(run), "--only", figure]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert told in err


def test_a_figure_of_a_run_needs_a_run(folder, capsys):
    assert cli.main(["figures", "--results", str(folder), "--only", "training_gap"]) == 2
    assert "training_gap is no figure of" in capsys.readouterr().err
