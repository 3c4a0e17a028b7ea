"""The report: self-contained, escaped, complete, and honest about what is missing."""

import base64
import json

import numpy as np
import pytest
from html_page import Page

from nashpo.figures import report
from nashpo.tabular import experiments

CLAIMS = [
    {
        "id": "sppo.average-gap",
        "statement": "gap <= 2D/(ηT) + η/4 <script>alert('x')</script> & more",
        "source": 'SPPO, "Theorem" 4.1 <b>',
        "status": "published",
        "holds": True,
        "games": 320,
        "steps": 1_234_567,
        "worst_slack": -4.4e-16,
        "tightness": 1.0241,
        "slope": [-0.55, -0.5, -0.45],
        "remarks": ["over <i>these</i> games"],
    },
    {
        "id": "onpo.printed",
        "status": "refuted as printed",
        "holds": True,
        "games": 4,
        "steps": 10,
        "worst_slack": -0.445,
    },
    {
        "id": "mwu.identity",
        "status": "derived",
        "holds": True,
        "games": 6,
        "steps": 60,
        "worst_slack": None,
        "error": 3e-15,
    },
]
MANIFEST = {"claims": CLAIMS, "command": "nashpo verify --out <here>", "versions": {"nashpo": "0.1.0"}, "seed": 7}


@pytest.fixture(autouse=True)
def quick(monkeypatch, results):
    """Experiments answered from the synthetic results, pictures coarse."""
    monkeypatch.setattr(
        experiments,
        "EXPERIMENTS",
        {
            name: lambda name=name: {key: v for key, v in results.items() if key.startswith(f"{name}/")}
            for name in ("portrait", "step_sizes", "comal", "pessimism", "policies")
        },
    )
    monkeypatch.setattr(report, "DPI", 40)


def write(folder, **changes) -> tuple[str, Page]:
    (folder / "verify.json").write_text(json.dumps(MANIFEST | changes))
    path = report.write_report(folder)
    assert path == folder / "report.html"
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def test_it_needs_nothing_from_outside(folder):
    source, page = write(folder)
    assert page.references
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for word in ("http:", "https:", "url(", "@import"):
        assert word not in source
    anchors = [ref[1:] for ref in page.references if ref.startswith("#")]
    assert all(f'id="{anchor}"' in source for anchor in anchors)


def test_every_figure_is_inside_as_a_picture(folder):
    _, page = write(folder)
    assert len(page.images) == 7
    for image in page.images:
        assert base64.b64decode(image.partition(",")[2])[1:4] == b"PNG"


def test_a_sweep_in_the_same_folder_stays_out(folder, results):
    """Its map of COMAL is of another game than the one that the caption of the report tells of."""
    np.savez(folder / "sweep.npz", **{key: results[key] for key in results if key.startswith(("sweep/", "comal/"))})
    _, page = write(folder)
    assert len(page.images) == 7
    assert "nashpo sweep" not in page.text


def test_what_others_wrote_is_escaped(folder):
    source, page = write(folder)
    assert "<script>" not in source
    assert "<i>these" not in source
    assert "<here>" not in source
    for told in ("<script>alert('x')</script> & more", "<i>these</i>", '"Theorem" 4.1 <b>', "--out <here>"):
        assert told in page.text


def test_the_summary_and_the_table_say_what_was_found(folder):
    _, page = write(folder, seconds=61.4, game_steps=4321)
    for told in (
        "All 3 claims came out as expected: 2 hold, 1 refuted as printed.",
        "4,321 game-steps played",
        "61 seconds",
        "✓ holds",
        "⚠ refuted as printed",
        "−0.50 [−0.55, −0.45]",
        "−4.4e−16",
        "error 3e−15",
        "nashpo 0.1.0",
    ):
        assert told in page.text, told
    assert "FAILS" not in page.text


def test_a_failure_is_told_first(folder):
    failing = [*CLAIMS, {"id": "inpo.<contraction>", "status": "derived", "holds": False}]
    _, page = write(folder, claims=failing)
    assert "1 of 4 claims fails: inpo.<contraction>." in page.text
    assert "✗ FAILS" in page.text
    assert page.text.index("fails: inpo") < page.text.index("✓ holds")


def test_refuted_as_printed_is_explained_with_the_numbers(folder):
    """Synthetic T·gap of 9 at n = 10 against 4√(log 10) = 6.07 and 4 log 10 + ¼ = 9.46."""
    _, page = write(folder)
    assert "10 8.99 6.07 9.46 violated" in page.text or "10 9.00 6.07 9.46 violated" in page.text
    assert "3 4.00 4.19 4.64 holds here" in page.text
    assert "η = min{½, √D}" in page.text


def test_figures_that_cannot_be_drawn_are_named(folder):
    np.savez(folder / "results.npz", other=np.zeros(1))
    _, page = write(folder)
    named = "rates, refuted_bound, offline_rates, offline_certificate, multiturn, two_turns"
    assert f"Not drawn, since the claims that they need were not checked in this run: {named}." in page.text
    assert len(page.images) == 5


def test_a_slack_that_is_no_number_is_a_dash(folder):
    _, page = write(folder, claims=[CLAIMS[0] | {"worst_slack": float("inf"), "slope": None, "tightness": None}])
    assert "inf" not in page.text.lower().replace("information", "")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "there is no"), ("{", "not JSON"), ("[]", "lists no claims"), ("{}", "lists no claims")],
)
def test_a_bad_manifest_is_one_line(content, told, folder):
    if content is not None:
        (folder / "verify.json").write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        report.write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_missing_results_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no results folder"):
        report.write_report(tmp_path / "nowhere")
