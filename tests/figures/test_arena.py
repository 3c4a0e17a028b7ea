"""The report of an arena: self-contained, escaped, and strict about shapes."""

import pytest
from html_page import Page
from test_training_figures import results

from nashpo.figures import arena, style


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch):
    monkeypatch.setattr(style, "png", lambda fig, dpi: b"\x89PNG")


def test_it_tells_everything_and_needs_nothing(tmp_path):
    found = results() | {"length_controlled": results()["wins"], "judge": {"kind": "table", "game": "<i>"}}
    path = arena.write_arena_report(found, tmp_path / "arena.html")
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.references)
    assert all(f'id="{ref[1:]}"' in source for ref in page.references if ref.startswith("#"))
    assert "<script" not in source
    assert "<i>" not in source
    assert len(page.images) == 2
    for told in (
        "Least exploitable: <script>alert(1)</script> $x_{$ (0.050).",
        "0.213 [0.163, 0.263]",
        "iteration 2 0.3333 0.2333",
        "prompts 64",
        "game <i>",
        "an opponent that is not here may exploit any of them",
    ):
        assert told in page.text, told
    assert "were not computed" not in page.text


def test_length_control_that_was_not_computed_is_said(tmp_path):
    path = arena.write_arena_report(results(), tmp_path / "arena.html")
    assert "Length-controlled win rates were not computed." in Page(path.read_text()).text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wins": None}, "lack wins"),
        ({"policies": []}, "name no policies"),
        ({"low": [[0.5]]}, r"low of the arena is \(1, 1\), and there are 4"),
        ({"high": [[0.5], [1, 2]]}, "high of the arena is no matrix"),
        ({"nash": [1.0]}, "nash of the arena"),
        ({"exploitability": [0.1, 0.2, None, 0.3]}, "exploitability of the arena"),
    ],
)
def test_bad_results_are_one_line(changes, told, tmp_path):
    with pytest.raises(ValueError, match=told) as caught:
        arena.write_arena_report(results() | changes, tmp_path / "arena.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "arena.html").exists()
