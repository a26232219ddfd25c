"""The recipes of the docs run as they stand, and print what the pages say they print."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.recipes import promised, recipes, run

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "interventions.md"
SIZES = ROOT / "docs" / "howto" / "sizes.md"


def assert_kept(blocks: list[str], page: Path) -> None:
    """Runs a page's blocks, each with the names of those before it, and compares what they print with what the page says."""
    names: dict[str, object] = {}
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run(block, page, names)
        assert_printed(out.getvalue().splitlines(), promised(block))


def assert_printed(printed: list[str], expected: list[str]) -> None:
    assert len(printed) == len(expected)
    for found, said in zip(" ".join(printed).split(), " ".join(expected).split(), strict=True):
        try:
            value = float(said)
        except ValueError:
            assert found == said
        else:
            np.testing.assert_allclose(float(found), value, rtol=0.01, err_msg=said)


@pytest.mark.slow
@pytest.mark.quick
def test_the_recipes_print_what_the_page_says(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path))
    blocks = recipes(PAGE)
    assert sum(len(promised(block)) for block in blocks) == 10
    assert_kept(blocks, PAGE)


@pytest.mark.slow
@pytest.mark.quick
def test_a_depth_map_is_laid_over_the_photo_as_the_page_says(monkeypatch, tmp_path):
    """On photos of the size of those that the page renders, which takes longer than all else."""
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").symlink_to(ROOT / "pocket")
    for name, turn in (("a", 0), ("b", 20)):
        Image.radial_gradient("L").rotate(turn).resize((337, 451)).save(f"{name}.png")
    photos, *blocks = recipes(SIZES)
    assert "scene_inputs(5" in photos and [len(promised(block)) for block in blocks] == [3, 0]
    assert_kept(blocks, SIZES)
    with Image.open("sizes.jpg") as drawn, Image.open(SIZES.with_name("sizes.jpg")) as kept:
        assert drawn.size == kept.size


def test_every_recipe_that_measures_says_what_it_finds():
    # A print statement without a value behind it would not be checked.
    assert [line for block in recipes(PAGE) for line in block.splitlines() if line.startswith("print(") and not promised(f"{line}\n")] == []
