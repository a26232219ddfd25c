"""Runs the Python blocks of a page of docs, one after another as one program: `python -m tests.recipes docs/howto/sizes.md`."""

import re
import sys
from pathlib import Path


def recipes(page: Path) -> list[str]:
    """The page's blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def promised(block: str) -> list[str]:
    """What stands behind the `#` of its print statements."""
    return re.findall(r"^print\(.*\)\s+# (.*)$", block, re.MULTILINE)


def run(block: str, page: Path, names: dict[str, object]) -> None:
    """One block, with the names that those before it have made."""
    exec(compile(block, str(page), "exec"), names)


if __name__ == "__main__":
    made: dict[str, object] = {}
    for text in recipes(Path(sys.argv[1])):
        run(text, Path(sys.argv[1]), made)
