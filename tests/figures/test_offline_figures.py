"""The figures about offline learning show what they are given, and their experiments compute what they say."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from numpy.testing import assert_allclose

from nashpo.core.rules import SPAC
from nashpo.figures import judged_regret, load, offline_certificate, offline_policies, offline_rates, style
from nashpo.figures.offline_style import METHODS, method_styles
from nashpo.tabular.instances import rare_arms
from nashpo.tabular.offline import play_offline
from nashpo.tabular.offline_experiments import COVERAGES, LAMBDAS, N, covered, pessimism_map, policies


def texts(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text().strip()]


def labels(fig) -> list[str]:
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_rates_are_means_with_bands_and_slopes(results):
    """The made-up suboptimalities are N^-1/2, N^-3/4 and constants, with the same factors at every N: known slopes."""
    fig = load("offline_rates").draw(results)
    ax = fig.axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    values = results["spac/suboptimality"]
    assert len(ax.collections) == len(values), "a band for every method"
    for method, name in enumerate(("SPAC, average: −0.50", "SPAC, last: −0.75", "MLE, greedy: ", "DPO, τ = 0.3: ")):
        line = next(line for label, line in lines.items() if label.startswith(name))
        assert_allclose(line.get_ydata(), values[method].mean(axis=-1), rtol=1e-12)
    guide = next(line for line in ax.lines if line.get_label().startswith("_"))
    assert_allclose(guide.get_ydata()[0] / guide.get_ydata()[-1], np.sqrt(8), rtol=1e-12)
    assert guide.get_ydata()[0] < values.mean(axis=-1).min(axis=0)[0]
    assert "slope −½" in texts(fig)
    band = ax.collections[0].get_paths()[0].vertices
    half = 1.96 * values[0, 0].std(ddof=1) / 2
    assert_allclose(band[band[:, 0] == 100][:, 1].max(), values[0, 0].mean() + half, rtol=1e-12)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100", "200", "400", "800"]
    assert "4 replicates" in fig.legends[0].get_title().get_text()


def test_a_suboptimality_of_zero_has_a_place_and_no_slope(results):
    results["spac/suboptimality"] = results["spac/suboptimality"].copy()
    results["spac/suboptimality"][1] = 0
    fig = offline_rates.draw(results)
    line = next(line for line in fig.axes[0].lines if line.get_label() == "SPAC, last: –")
    assert_allclose(line.get_ydata(), offline_rates.LOWEST)


def test_the_certificate_is_dashed_and_the_truth_solid(results):
    ax = load("offline_certificate").draw(results).axes[0]
    solid = [line for line in ax.lines if not line.is_dashed()]
    dashed = [line for line in ax.lines if line.is_dashed()]
    for drawn, key in ((solid, "truth"), (dashed, "bound")):
        expected = np.maximum(results[f"certificate/{key}"], offline_certificate.LOWEST)
        assert_allclose([line.get_ydata() for line in drawn], expected, rtol=0)
    assert [line.get_color() for line in solid] == [line.get_color() for line in dashed]


def test_the_map_marks_the_best_weight_and_the_theory(results):
    fig = load("pessimism_map").draw(results)
    ax = fig.axes[0]
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(dots.get_ydata(), [1, 2])
    assert_allclose(ax.images[0].get_array(), results["pessimism/suboptimality"], rtol=0)
    theory = next(line for line in ax.lines if line.get_label() == "λ = √(C·N)")
    # √(2·1600) = 56.6 lies between λ = 10 and 100 at 1 + log10(5.66); √(20·1600) = 179 is above the last row.
    assert_allclose(theory.get_ydata(), [1 + np.log10(5.65685), 2], atol=1e-5)
    assert "N = 1,600 pairs" in texts(fig)


def test_the_table_of_policies_tells_what_is_known(results):
    fig = load("offline_policies").draw(results)
    shown = texts(fig)
    for told in (".970", ".030", "≈ 0", "0", ".500", "0.015", "1.500", "0.600", "certificate"):
        assert told in shown
    assert "nan" not in " ".join(shown)
    results["policies/suboptimality"] = np.full(3, np.nan)
    fig = offline_policies.draw(results, "mine", "answers")
    assert "sub-\noptimality" not in texts(fig)
    assert {"mine", "answers", "certificate"} <= set(texts(fig))


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (1, "1"), (0.99951, "1"), (0.4999, ".500"), (4e-4, "≈ 0")])
def test_probabilities_in_cells(value, shown):
    assert offline_policies.cell(value) == shown


def test_every_method_has_a_look_of_its_own():
    names = [*METHODS, "DPO 0.05", "DPO 0.1", "DPO 0.2", "DPO 0.3", "DPO 0.5", "DPO 1"]
    looks = method_styles(names)
    assert len({look.marker for look in looks}) == len(names)
    assert len({to_rgba(look.color) for look in looks}) == len(names)
    assert [look.label for look in method_styles(["DPO 0.1", "IPO 0.03", "mine"])] == [
        "DPO, τ = 0.1", "IPO, τ = 0.03", "mine",
    ]  # fmt: skip


def test_regret_by_a_judge_has_means_and_intervals():
    """Two replicates 1 and 3: mean 2, and Student's half-width 12.706 · √2/√2."""
    names = np.array(["SPAC, average", "DPO, tau = 0.1", "behavior"])
    regret = np.array([[1.0, 3.0], [2.0, 2.5], [0.0, 0.5]])
    given = {f"judged/{k}/{key}": value for k in (0, 1) for key, value in (("methods", names), ("regret", regret))}
    fig = judged_regret.draw(given, ["hidden prompts", "hidden answers"], ["regret against one", "against two"], "Who")
    assert {"hidden prompts", "hidden answers", "regret against one", "Who", "behavior"} <= set(texts(fig))
    ax = fig.axes[0]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert_allclose([line.get_xdata()[0] for line in points], [2, 2.25, 0.25])
    spans = [segment for c in ax.collections for segment in c.get_segments()]
    assert_allclose(np.ptp(spans[0][:, 0]) / 2, 12.7062, rtol=1e-5)
    with style.apply():
        FigureCanvasAgg(fig).draw()


def test_the_covered_instance_is_the_rare_arms_with_another_coverage():
    instance, rare = covered(20.0), rare_arms(N)
    assert_allclose(instance.behavior[0], 1 / 20)
    assert_allclose(instance.behavior.sum(), 1, rtol=1e-12)
    assert_allclose(instance.behavior[2:], rare.behavior[2:])
    assert_allclose(instance.coverage.single_policy, 20)
    assert min(covered(C).behavior.min() for C in COVERAGES) > 0


def test_the_map_agrees_with_single_runs():
    made = pessimism_map(lam=(5.0, 80.0), coverage=(2.5, 40.0), replicates=6, steps=50)
    for column, C in enumerate((2.5, 40.0)):
        instance = covered(C)
        data = instance.sample(N, 7406 + column, 6)
        D = np.log(N)  # the rare responses are the rarest
        for row, lam in enumerate((5.0, 80.0)):
            rule = SPAC(eta=np.sqrt(8 * D / 50) / 3, lam=lam, R=3.0)
            run = play_offline(rule, data, 50, reference=instance.reference)
            expected = instance.suboptimality(run.average).mean()
            assert_allclose(made["pessimism/suboptimality"][row, column], expected, atol=1e-7)


@pytest.fixture(scope="module")
def full():
    return pessimism_map(replicates=20, steps=200) | policies(replicates=100, steps=800)


def test_the_map_shows_what_its_caption_says(full):
    """Means of 20 replicates: what is asserted differs by more than ten standard errors."""
    found = full["pessimism/suboptimality"]
    assert found.shape == (len(LAMBDAS), len(COVERAGES))
    best = found.min(axis=0)
    assert np.all(found[0, 1:] > 1.05 * best[1:]), "a small λ is too pessimistic"
    assert np.all(found[-1, :5] > 2 * best[:5]), "a large λ trusts single pairs"
    chosen = np.argmin(found, axis=0)
    assert chosen[0] < chosen[3] < chosen[6], "less coverage asks for a larger λ"
    assert best[0] < 0.03
    assert best[-1] > 0.3


def test_the_policies_are_what_the_caption_says(full):
    """Differences of ten standard errors and more, over 100 replicates."""
    names = full["policies/methods"].tolist()
    put = dict(zip(names, full["policies/probability"], strict=True))
    truth = dict(zip(names, full["policies/suboptimality"], strict=True))
    assert_allclose(full["policies/probability"].sum(axis=-1), 1, atol=1e-9)
    assert truth["SPAC, average"] < 0.06
    assert truth["SPAC, average"] < truth["DPO, τ = 0.3"] / 2
    assert put["MLE, greedy"][2:].sum() > 0.25
    assert put["Nash of the win rates"][2:].sum() > 0.4
    assert put["DPO, τ = 0.1"][2:].sum() > 5 * put["DPO, τ = 1"][2:].sum()
    assert put["DPO, τ = 1"][1] > 0.3
    # A bound of every policy, not of the mean alone: over 100 replicates of 12 policies at δ = 5 %.
    assert np.all(full["policies/certificate"] >= full["policies/suboptimality"])
