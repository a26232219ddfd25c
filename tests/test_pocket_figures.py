"""What the pocket model's card and page print is what was measured, and is committed beside them."""

import json
import re
from pathlib import Path

from und3rstand_jax.analysis.two_views import is_two_views
from und3rstand_jax.model.layer_ids import paper_layer_ids

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TWO_VIEWS = ROOT / "pocket" / "training" / "two_views.json"


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def told(text: str) -> set[str]:
    """All of "0.123 ± 0.004" in a text, without signs."""
    return set(re.findall(r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?", text))


def test_every_number_with_an_error_on_the_page_was_printed_by_a_command_that_it_names():
    page = (DOCS / "pocket.md").read_text()
    printed = {name: (DOCS / name).read_text() for name in re.findall(r"\]\((pocket_\w+\.txt)\)", page)}
    assert set(printed) == {"pocket_studies.txt", "pocket_second_seed.txt", "pocket_attribution.txt"}
    assert len(told(page)) > 150
    assert not told(page) - set.union(*map(told, printed.values()))
    other = told((DOCS / "explanation" / "what_probes_say.md").read_text())
    assert len(other) > 14 and other <= told(page)


def test_every_number_with_an_error_on_the_small_vggts_page_was_printed_too():
    page, printed = ((DOCS / name).read_text() for name in ("explanation/small_vggt.md", "small_vggt_studies.txt"))
    assert len(told(page)) > 25 and told(page) <= told(printed)
    assert printed.count("0 of 20 global attention heads put at least 0.15 more of their attention on the true place") == 2


def test_the_page_shows_the_tables_of_the_studies():
    cells = [re.split(r"\s{2,}", line.strip()) for line in (DOCS / "pocket_studies.txt").read_text().splitlines()]
    page = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows((DOCS / "pocket.md").read_text())]
    layers = [row for row in page if row[0].startswith("decoder.") and len(row) == 6 and "°" not in row[1]]
    shown = [row for row in page if row[0].isdigit()]
    assert [row[0] for row in layers[:24]] == list(paper_layer_ids(8)) and len(shown) == 2 * 8
    assert all(row in cells for row in (*layers[:24], *shown))


def test_the_sentences_in_short_are_what_the_studies_found():
    """The ones that would have to change first if the model, the studies or the scenes changed."""
    found = (DOCS / "pocket_studies.txt").read_text()
    label = {row[1]: int(row[2]) for row in (line.split() for line in found.splitlines()) if row[:1] == ["cross_attn"] and len(row) == 6}
    assert label == {"1": 6, "2": 10}  # of the second table, 16 of 64
    losses = re.search(r"by mean \+(\S+) ± \S+, \+(\S+) ±", found)
    assert losses is not None and float(losses[1]) > 10 * float(losses[2])
    assert "Of single updates of view 2 decoder.4.cross_attn.update brings most" in found
    assert "decoder.7.mlp costs view 2 most" in found


def test_the_card_shows_the_errors_that_were_measured_and_they_reach_what_was_aimed_at():
    measured = json.loads(TWO_VIEWS.read_text())
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


def test_the_cards_command_may_replace_the_figures_that_are_kept():
    assert is_two_views(TWO_VIEWS)


def test_the_page_repeats_what_the_card_says_of_both_views():
    errors = json.loads(TWO_VIEWS.read_text())["errors"]
    section = " ".join((DOCS / "pocket.md").read_text().partition("## It uses both views")[2].split())
    for name in ("model", "constant", "other_view2", "grey_view1"):
        assert f"{errors[name]['view2']:.3f}" in section.partition("##")[0]
