"""Every figure draws from small results, shows what they hold, and can be read."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose

from nashpo.core.rules import RULES
from nashpo.figures import FIGURES, load, phase_portrait, style

SMALLEST_TEXT = 11
"""Points: at half of 8 inches on 800 pixels such a letter is still some 7 pixels high."""


def texts(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]


def drawn(fig: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(fig)
    with style.apply():
        canvas.draw()
    return canvas


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_title_caption_labels_and_legend(name, results):
    module = load(name)
    fig = module.draw(results)
    assert module.TITLE
    assert len(module.CAPTION) > 100
    assert "`nashpo" in module.CAPTION, "a caption tells with which command the figure was made"
    labels = [label for ax in fig.axes for label in (ax.get_xlabel(), ax.get_ylabel(), fig.get_supylabel()) if label]
    if name == "phase_portrait":  # corners instead of axes
        assert {"rock", "paper", "scissors"} <= set(texts(fig))
    else:
        assert len(set(labels)) >= 2, labels
    legends = [*fig.legends, *(legend for part in fig.subfigs for legend in part.legends)]
    assert legends
    assert all(legend.get_texts() for legend in legends)


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_inside_the_figure_and_large_enough(name, results):
    fig = load(name).draw(results)
    renderer = drawn(fig).get_renderer()
    page = fig.bbox
    ticks = {tick for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_ticklabels(which="both")}
    for text in fig.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or text.axes and not text.axes.get_visible():
            continue
        box = text.get_window_extent(renderer)
        if text in ticks or box.width == 0:  # ticks outside the limits are not drawn
            continue
        inside = box.x0 >= page.x0 - 1 and box.y0 >= page.y0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} at {box} leaves the page {page}"
        assert text.get_fontsize() >= SMALLEST_TEXT, text.get_text()


@pytest.mark.parametrize("name", FIGURES)
def test_legends_do_not_cover_the_data(name, results):
    fig = load(name).draw(results)
    renderer = drawn(fig).get_renderer()
    for part in (fig, *fig.subfigs):
        for legend in part.legends:
            box = legend.get_window_extent(renderer)
            for ax in fig.axes:
                assert not box.overlaps(ax.get_window_extent(renderer)), f"{name}: a legend covers an axes"


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_key_is_one_clear_line(name, results):
    module = load(name)
    for key in module.NEEDS:
        lacking = {other: values for other, values in results.items() if other != key}
        with pytest.raises(ValueError, match=key) as caught:
            module.draw(lacking)
        assert "\n" not in str(caught.value)
        assert "nashpo" in str(caught.value), "the message tells which command makes the results"


@pytest.mark.parametrize("name", ["rates", "sweep"])
def test_drawing_leaves_the_callers_settings_alone(name, results, tmp_path):
    with matplotlib.rc_context({"font.size": 7.5, "legend.frameon": True, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        style.save(load(name).draw(results), tmp_path / name, dpi=40)
        assert dict(matplotlib.rcParams) == before


def test_saved_as_picture_and_vector_and_nothing_else(results, tmp_path):
    paths = style.save(load("rates").draw(results), tmp_path / "a.b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.pdf", "a.b.png", "a.b.svg"]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    head = paths[0].read_bytes()[:24]
    assert head[1:4] == b"PNG"
    width = int.from_bytes(head[16:20], "big")
    assert width == style.WIDTH * style.PNG_DPI
    assert b"<svg" in (tmp_path / "a.b.svg").read_bytes()
    assert (tmp_path / "a.b.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    first, second = (style.save(load("comal_map").draw(results), tmp_path / name, dpi=50) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_a_folder_that_is_not_there_is_told(results, tmp_path):
    with pytest.raises(OSError):
        style.save(load("rates").draw(results), tmp_path / "nowhere" / "rates")


def test_every_rule_has_a_look_of_its_own():
    assert set(style.RULE_STYLES) == set(RULES)
    looks = list(style.RULE_STYLES.values())
    for what in ("label", "marker", "linestyle"):
        assert len({getattr(look, what) for look in looks}) == len(looks), f"two rules share a {what}"
    mainly = [style.RULE_STYLES[name].color for name in ("sppo", "onpo", "inpo", "nash-md", "egpo", "comal")]
    assert len(set(mainly)) == 6


def test_rows_of_one_rule_and_rules_of_ones_own_are_told_apart():
    names = ["sppo", "comal k=1", "comal k=10", "comal k=100", "mine", "yours", "onpo"]
    styles = style.rule_styles(names)
    assert [look.label for look in styles] == [
        "SPPO", "COMAL k=1", "COMAL k=10", "COMAL k=100", "mine", "yours", "ONPO",
    ]  # fmt: skip
    assert len({look.marker for look in styles}) == len(names)
    assert styles[1].color == style.RULE_STYLES["comal"].color
    assert len({look.color for look in styles}) == len(names)


def test_rates_draws_the_median_and_names_the_slopes(results):
    fig = load("rates").draw(results)
    lines = {line.get_label(): line for line in fig.axes[0].lines if not line.get_label().startswith("_")}
    sppo = next(line for label, line in lines.items() if label.startswith("SPPO"))
    assert_allclose(sppo.get_ydata(), np.median(results["rates/sppo_gap"], axis=0), rtol=0)
    words = " ".join(texts(fig))
    for told in ("−0.50 [−0.55, −0.45]", "−1.00 [−1.05, −0.95]", "−0.50 [−0.58, −0.42]"):
        assert told in words
    bounds = [line for label, line in lines.items() if label.startswith("bound")]
    assert len(bounds) == 2
    assert all(line.is_dashed() for line in bounds)
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["256", "512", "1,024", "2,048", "4,096"]
    singles = [line for line in fig.axes[0].lines if line.get_label().startswith("_")]
    assert len(singles) == 8, "four games for each rule"


def test_the_refuted_bound_says_by_how_much(results):
    """n = 10: 9 against 4√(log 10) = 6.07 is 148 %; n = 3: 4 against 4.19 is 95 %, and nothing is hatched there."""
    fig = load("refuted_bound").draw(results)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert "148 %" in titles[1]
    assert "95 %" in titles[0]
    assert "1,000" in titles[3]
    hatched = [any(len(path.vertices) for c in ax.collections for path in c.get_paths()) for ax in fig.axes]
    assert hatched == [False, True, True, True]


def test_policies_are_placed_on_the_simplex():
    assert_allclose(phase_portrait.place(np.eye(3)), phase_portrait.corners(3), rtol=0)
    assert_allclose(phase_portrait.place(np.full((2, 4), 0.25)), 0, atol=1e-15)
    assert_allclose(phase_portrait.corners(3)[0], [0, 1], atol=1e-15)


def test_the_portrait_marks_equilibria_start_and_gap(results):
    fig = load("phase_portrait").draw(results)
    free, pulled = fig.axes
    places = [np.ravel(line.get_xydata()) for line in pulled.lines if line.get_marker() in "*oD"]
    for policy in (results["portrait/start"], results["portrait/equilibrium"], results["portrait/target"][1]):
        expected = phase_portrait.place(policy)
        assert any(np.abs(place - expected).max() < 1e-12 for place in places)
    assert "D" not in [line.get_marker() for line in free.lines], "SPPO aims for the equilibrium itself"
    assert "last gap 0.25" in texts(fig)
    assert "η = 0.5, τ = 0.1" in texts(fig)


@pytest.mark.parametrize(
    ("gap", "text"), [(0.4123, "0.41"), (0.0104, "0.01"), (0.0023, "0.002"), (3.2e-5, "3e−5"), (0.0, "< 1e−15")]
)
def test_gaps_in_words(gap, text):
    assert phase_portrait.gap_text(gap) == text


@pytest.mark.parametrize("n", [2, 5, 11])
def test_a_portrait_of_another_number_of_responses(n, results):
    rng = np.random.default_rng(n)
    results |= {
        "portrait/names": np.array([f"answer {i}" for i in range(n)]),
        "portrait/trajectory": rng.dirichlet(np.ones(n), (2, 30)),
        "portrait/start": np.full(n, 1 / n),
        "portrait/equilibrium": np.eye(n)[0],
        "portrait/target": np.full((2, n), np.nan),
    }
    fig = load("phase_portrait").draw(results)
    assert ("answer 1" if n <= phase_portrait.LARGEST_NAMED else "10") in texts(fig)
    assert "rock" not in texts(fig)
    assert style.png(fig, 40)


def test_step_sizes_mark_the_step_of_the_theory(results):
    """SPPO's made-up gap is 0.1/η, so the mark at η = 0.3 sits at 1/3 on the log-log line."""
    left = load("step_sizes").draw(results).axes[0]
    marked = [line for line in left.lines if len(line.get_xdata()) == 1]
    assert len(marked) == 2, "one mark and its ring; the other rule has no limit"
    for line in marked:
        assert_allclose(line.get_xydata()[0], [0.3, 1 / 3], rtol=1e-12)


def test_the_map_crosses_out_what_did_not_converge(results):
    ax = load("comal_map").draw(results).axes[0]
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == np.count_nonzero(results["comal/gap_last"] > 0.1)
    image = ax.images[0].get_array()
    assert_allclose(image, np.log10(np.maximum(results["comal/gap_last"], 1e-15)), rtol=1e-12)


def test_the_map_without_the_line_of_the_theory(results):
    bare = {key: results[key] for key in load("comal_map").NEEDS}
    assert len(load("comal_map").draw(bare).axes[0].collections) < len(
        load("comal_map").draw(results).axes[0].collections
    )


def test_a_sweep_of_one_cell(results):
    one = {
        "sweep/rules": np.array(["mine"]),
        "sweep/eta": np.array([0.1]),
        "sweep/gap_average": np.array([[0.2]]),
        "sweep/gap_last": np.array([[0.0]]),
    }
    fig = load("sweep").draw(one)
    assert "mine" in texts(fig)
    assert len(fig.axes) == 2
    assert len(load("sweep").draw(results).axes) == 4, "two panels, the map and its colour bar"


def test_a_sweep_leaves_out_cells_that_were_not_run(results):
    solid, dashed = load("sweep").draw(results).axes[:2]
    for ax in (solid, dashed):
        assert np.isnan(ax.lines[1].get_ydata()).sum() == 2
    assert [line.get_linestyle() for line in (*solid.lines, *dashed.lines)] == ["-", "-", "--", "--"]


def test_an_unknown_figure_is_told():
    with pytest.raises(ValueError, match="no figure 'nope'.*rates"):
        load("nope")


def test_importing_the_package_loads_neither_numpy_nor_matplotlib_and_figures_no_pyplot():
    code = (
        "import sys, nashpo.figures as f\n"
        "assert not {'numpy', 'matplotlib'} & set(sys.modules)\n"
        "[f.load(name) for name in f.FIGURES]\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
