"""Every figure of a run draws from whole and from broken-off runs, shows what they hold, and can be read."""

import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from run_folder import manifest, write_run

from nashpo.figures import TRAINING, arena, load, style, training_style
from nashpo.figures.training_run import load_run

SMALLEST_TEXT = 11
HOSTILE = "$\\frac{$ </svg> a very long name of a thing \n that goes on"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run; one of 12 iterations with names that matplotlib could take for formulas; one of one step."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "whole")
    write_run(folder / "long", done=12)
    for n in range(1, 13):
        path = folder / "long" / "iterations" / f"{n:03d}" / "evaluation" / "results.json"
        found = json.loads(path.read_text())
        found["win_rates"] |= {HOSTILE: {"mean": 0.99, "low": 0.95, "high": 1.0}, "iteration 1": {"mean": 0.2}}
        path.write_text(json.dumps(found))
        manifest(path.parent.parent / "other", HOSTILE, {}, 9000.0)
    write_run(folder / "short", done=1, begun=1)
    row = {"iteration": 1, "phase": "train", "stage": HOSTILE, "step": 1, "loss": -3.0, "theory/kl_reference": -0.2}
    (folder / "short" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return {path.name: load_run(path) for path in sorted(folder.iterdir())}


def legible(fig: Figure) -> None:
    """All text inside the page and large enough, no legend over an axes."""
    canvas = FigureCanvasAgg(fig)
    with style.apply():
        canvas.draw()
    renderer, page = canvas.get_renderer(), fig.bbox
    ticks = {tick for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_ticklabels(which="both")}
    for text in fig.findobj(Text):
        if not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent(renderer)
        if text in ticks or box.width == 0:
            continue
        inside = box.x0 >= page.x0 - 1 and box.y0 >= page.y0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} at {box} leaves the page {page}"
        assert text.get_fontsize() >= SMALLEST_TEXT, text.get_text()
    for legend in fig.legends:
        assert legend.get_texts()
        for ax in fig.axes:
            assert not legend.get_window_extent(renderer).overlaps(ax.get_window_extent(renderer))


@pytest.mark.parametrize("run", ["whole", "long", "short"])
@pytest.mark.parametrize("name", TRAINING)
def test_a_figure_has_labels_and_can_be_read(name, run, runs):
    module = load(name)
    assert module.missing(runs[run]) == ""
    fig = module.draw(runs[run])
    assert module.TITLE
    assert len(module.CAPTION) > 100
    assert all(ax.get_ylabel() for ax in fig.axes if ax.get_subplotspec().is_first_col())
    assert all(ax.get_xlabel() for ax in fig.axes if ax.get_subplotspec().is_last_row())
    legible(fig)


def lines(fig: Figure) -> dict[str, list]:
    """The values of every named line."""
    named = [line for ax in fig.axes for line in ax.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): np.round(line.get_ydata(), 6).tolist() for line in named}


def test_marks_have_room_at_the_top():
    """On an axis from 0 a mark at the highest value is whole, however near the values are to each other."""
    with style.apply():
        ax = style.figure(5.2).add_subplot()
        ax.plot([1, 2], [0.641, 0.545], marker="s")
        training_style.value_axis(ax, [0.641, 0.545], always_from_zero=True)
        ax.figure.canvas.draw()
    assert ax.get_ylim()[0] == 0
    half = ax.get_lines()[0].get_markersize() / 2 * ax.figure.dpi / 72  # in pixels, as the window's extent
    assert ax.transData.transform((1, 0.641))[1] + half <= ax.get_window_extent().y1


def test_the_gaps_are_those_of_the_results(runs):
    found = lines(load("training_gap").draw(runs["whole"]))
    assert found["last iterate"] == [0.2475, 0.136125, 0.074869]
    assert found["predicted, last"] == [0.231, 0.12705, 0.069878]
    assert found["certificate of the average"] == [0.833333]  # those above 1 say nothing


def test_the_exact_play_of_one_iteration_can_be_seen(tmp_path):
    """A line of one point is nothing without a mark."""
    run = write_run(tmp_path / "run", done=1)
    path = run / "iterations/001/evaluation/results.json"
    found = json.loads(path.read_text())
    found["exact"]["exact_play"] = {"gap_last": 0.2, "gap_average": 0.3}
    path.write_text(json.dumps(found))
    drawn = [line for ax in load("training_gap").draw(load_run(run)).axes for line in ax.get_lines()]
    single = [line for line in drawn if len(line.get_xdata()) == 1 and not line.get_label().startswith("_")]
    assert "exact play, average" in [line.get_label() for line in single]
    assert all(line.get_marker() not in ("", "None") for line in single)


def test_the_win_rates_are_those_of_the_results(runs):
    found = lines(load("training_win_rates").draw(runs["whole"]))
    assert found["against reference"] == [0.56, 0.62, 0.68]
    assert found["against previous iterate"] == [0.54, 0.53, 0.52]
    assert found["reference, length-controlled"] == [0.54, 0.58, 0.62]


def test_steps_go_on_counting_from_iteration_to_iteration(runs):
    fig = load("training_curves").draw(runs["whole"])
    ends = sorted({float(line.get_xdata()[-1]) for line in fig.axes[0].get_lines() if len(line.get_xdata()) == 20})
    assert ends == [40, 80, 120]


def test_each_stage_is_named_once(runs):
    fig = load("training_curves").draw(runs["whole"])
    assert sorted(text.get_text() for text in fig.legends[0].get_texts()) == [
        "stage auxiliary", "stage auxiliary, centred", "stage current", "stage current, centred",
    ]  # fmt: skip


def test_distances_are_those_of_the_stage_that_writes_the_iterates(runs):
    fig = load("training_kl").draw(runs["whole"])
    assert sum(len(line.get_xdata()) == 20 for line in fig.axes[0].get_lines()) == 2 * 3  # not the auxiliary stage's


def results(M: int = 4) -> dict:
    upper = np.triu(np.linspace(-0.4, 0.45, M * M).reshape(M, M), 1)
    wins = (0.5 + upper - upper.T).tolist()
    low, high = ((np.clip(np.array(wins) + d, 0, 1)).tolist() for d in (-0.05, 0.05))
    names = ["reference", *(f"iteration {k}" for k in range(1, M - 1)), "<script>alert(1)</script> $x_{$"][:M]
    return {
        "policies": names,
        "wins": wins,
        "low": low,
        "high": high,
        "nash": (np.arange(M) / max(np.arange(M).sum(), 1)).tolist(),
        "exploitability": np.linspace(0.6, 0.05, M).tolist(),
        "length_controlled": None,
        "prompts": 64,
    }


@pytest.mark.parametrize("M", [2, 4, 9])
def test_the_arena_can_be_read(M):
    legible(arena.draw_wins(results(M)))
    legible(arena.draw_nash(results(M)))


def test_cells_hold_win_rates_and_intervals():
    found = results()
    found["wins"][0][1] = found["wins"][1][0] = None
    fig = arena.draw_wins(found)
    cells = {text.get_position(): text.get_text() for text in fig.axes[0].texts}
    assert cells[(1, 0)] == "–"
    assert cells[(2, 0)] == ".21\n[.16, .26]"
    assert [cells[(k, k)] for k in range(4)] == ["½"] * 4
