"""The tables of docs/parity.md, from the figures kept in docs/parity.json: `python -m benchmarks.parity_tables`."""

import json
import re
from pathlib import Path

from benchmarks.parity import table

DOCS = Path(__file__).parent.parent / "docs"
PAGE, FIGURES = DOCS / "parity.md", DOCS / "parity.json"


def page() -> str:
    """The page with the tables made from the figures: each is between `<!-- MODEL -->` and `<!-- end -->`."""
    text = PAGE.read_text()
    for model, measured in json.loads(FIGURES.read_text()).items():
        marked = f"<!-- {model} -->\n{table(measured['cases'])}\n<!-- end -->"
        text, found = re.subn(rf"<!-- {model} -->\n.*?<!-- end -->", lambda _, marked=marked: marked, text, flags=re.DOTALL)
        assert found == 1, f"{PAGE} has no place for {model}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
