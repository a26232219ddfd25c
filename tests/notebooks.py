"""Runs the notebooks of docs/tutorials and stores what they show: `python -m tests.notebooks [NAME …]`, all of them without a name.

A notebook runs in a folder that has a link to the clone's checkpoint and nothing else, so that it leaves nothing behind in the clone.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "tutorials"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb")))
CHECKPOINT = "pocket"
SECONDS = 600
"""The longest that a cell may take."""


def read(name: str) -> Any:
    """The notebook as it is stored."""
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def executed(name: str, folder: Path, further: str = "") -> Any:
    """The notebook with what its cells show now.

    Args:
        name: of its file, without the suffix.
        folder: an empty one, in which it runs.
        further: code that runs behind its last cell, for a test to look at its variables; no cell of the result.

    Raises:
        CellExecutionError: a cell raises, with its traceback.
    """
    (folder / CHECKPOINT).symlink_to(ROOT / CHECKPOINT)
    started_in = folder / "docs" / "tutorials"
    started_in.mkdir(parents=True)
    notebook = read(name)
    if further:
        notebook.cells.append(nbformat.v4.new_code_cell(further))
    # `!python` is this Python, and the package is this clone's, wherever another one may be installed.
    environment = os.environ | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "UND3RSTAND_JAX_CACHE": str(folder / "cache"),
    }
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(started_in)}})
    client.execute(env=environment)
    if further:
        notebook.cells.pop()
    return notebook


def shown(notebook: Any) -> list[str]:
    """The text of every cell that shows some, in order."""
    return [text for cell in notebook.cells if cell.cell_type == "code" and (text := _text(cell))]


def _text(cell: Any) -> str:
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs if not _is_picture(output)]
    return "".join(parts)


def _is_picture(output: Any) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def cleaned(notebook: Any) -> Any:
    """Without what differs from run to run or from machine to machine: times, counts, versions, progress bars."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Text that arrived in pieces as one; of a line that was written again and again, the last."""
    joined: list[Any] = []
    for output in outputs:
        if "execution_count" in output:
            output.execution_count = None
        if joined and output.output_type == "stream" and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text.replace("\r\n", "\n"))
    return joined


def main(names: list[str]) -> None:
    """Runs the notebooks of these names and stores each with what it shows."""
    for name in names or NAMES:
        folder = Path(tempfile.mkdtemp(prefix="und3rstand_jax_notebook_"))
        try:
            notebook = cleaned(executed(name, folder))
        finally:
            shutil.rmtree(folder)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
