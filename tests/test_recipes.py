"""The recipes of docs/interventions.md run as they stand, and print what the page says they print."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "interventions.md"


def recipes() -> list[str]:
    """The page's blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def promised(block: str) -> list[str]:
    """What stands behind the `#` of its print statements."""
    return re.findall(r"^print\(.*\)\s+# (.*)$", block, re.MULTILINE)


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
def test_the_recipes_print_what_the_page_says(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path))
    names: dict[str, object] = {}
    blocks = recipes()
    assert sum(len(promised(block)) for block in blocks) == 10
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, str(PAGE), "exec"), names)
        assert_printed(out.getvalue().splitlines(), promised(block))


def test_every_recipe_that_measures_says_what_it_finds():
    # A print statement without a value behind it would not be checked.
    assert [line for block in recipes() for line in block.splitlines() if line.startswith("print(") and not promised(f"{line}\n")] == []
