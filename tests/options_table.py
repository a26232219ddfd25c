"""The table of every training option, from their definition: `python -m tests.options_table` writes docs/training_options.md."""

import ast
import dataclasses
import inspect
from pathlib import Path

from train import options
from train.options import TrainOptions

DOCUMENT = Path(__file__).parent.parent / "docs" / "training_options.md"

_HEAD = """# Options of `python -m train`

Made by `python -m tests.options_table` from `train/options.py`. A config file (`--config`, YAML or JSON) holds them by the same names,
with `_` or `-`.

| option | default | what it does |
|---|---|---|
"""


def table() -> str:
    """The document."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    rows = [f"| `--{name.replace('_', '-')}` | {_told(defaults[name])} | {text} |" for name, text in _descriptions().items()]
    return _HEAD + "\n".join(rows) + "\n"


def _descriptions() -> dict[str, str]:
    """Name -> the text under each field, which Python itself does not keep."""
    (definition,) = (node for node in ast.parse(inspect.getsource(options)).body if isinstance(node, ast.ClassDef))
    described = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            described[field.target.id] = str(text.value.value).replace("|", "\\|")
    return described


def _told(value: object) -> str:
    return "–" if value is None or value == () else f"`{value}`"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
    print(DOCUMENT)
