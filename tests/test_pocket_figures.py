"""What the pocket model's card and page print is what was measured, and is committed beside them."""

import json
from pathlib import Path

import pytest

from und3rstand_jax.analysis.layer_study_files import from_json, tables

ROOT = Path(__file__).parent.parent


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_page_shows_the_tables_of_its_figures_and_no_others():
    found = from_json(json.loads((ROOT / "docs" / "pocket_layers.json").read_text()))
    page = (ROOT / "docs" / "pocket.md").read_text()
    assert rows(page) == rows(tables(found))
    assert f"The angle between the two cameras is {found.turn:.1f}° in the median" in " ".join(page.split())


def test_the_card_shows_the_errors_that_were_measured_and_they_reach_what_was_aimed_at():
    measured = json.loads((ROOT / "pocket" / "training" / "two_views.json").read_text())
    card = (ROOT / "pocket" / "README.md").read_text()
    shown = [[cell.strip(" *") for cell in line.split("|")[2:-1]] for line in rows(card.partition("## Held-out figures")[2])[2:]]
    names = ("model", "constant", "other_view2", "grey_view1", "grey_view2")
    assert len(shown) == len(names)
    for name, cells in zip(names, shown, strict=True):
        ratios = measured["ratios"].get(name, {})
        assert cells[:2] == [f"{measured['errors'][name][view]:.4f}" for view in ("view1", "view2")]
        assert cells[2:] == ([f"{ratios[view]:.3f}" for view in ("view1", "view2")] if ratios else ["", ""])
    assert measured["pairs"] == 512 and measured["options"]["checkpoint"] == "pocket-jax"
    constant, other = measured["ratios"]["constant"], measured["ratios"]["other_view2"]
    assert constant["view1"] <= 0.4 and constant["view2"] <= 0.5 and other["view2"] <= 0.7


def test_the_page_and_the_card_speak_of_the_same_scenes():
    head = json.loads((ROOT / "docs" / "pocket_layers.json").read_text())["layers"][-1]
    measured = json.loads((ROOT / "pocket" / "training" / "two_views.json").read_text())["errors"]["model"]
    # Means over scenes there, over pixels here; nearly all pixels of a room are valid.
    assert [head["view1"][0], head["view2"][0]] == pytest.approx([measured["view1"], measured["view2"]], rel=0.01)
