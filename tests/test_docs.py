"""What README and docs name is there: files, modules, links between pages, commands, and the README's length."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks import parity_tables
from und3rstand_jax.commands import convert, run, train

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    ROOT / name for name in subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PROGRAMS = {program.PROGRAM.module: program.PROGRAM for program in (run, convert, train)}


def code(text: str) -> list[str]:
    """Everything in a page that is marked as code, in the line or as a block."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}.*\n)+", text, re.MULTILINE)
    return [*re.findall(r"`([^`\n]+)`", text), *fenced, *indented]


def heading_ids(page: Path) -> set[str]:
    """The anchors that a code host gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in heading_ids(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_source_files_that_a_page_names_exist(page):
    for text in code(page.read_text()):
        for path in re.findall(r"(?:und3rstand_jax|tests|benchmarks|docs|pocket)/[\w/.]*\w\.(?:py|md|yaml|json|jpg)", text):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_modules_and_names_of_the_library_that_a_page_gives_exist(page):
    for text in code(page.read_text()):
        for dotted in re.findall(r"\bund3rstand_jax(?:\.\w+)+", text):
            *path, last = dotted.split(".")
            parent = importlib.import_module(".".join(path))
            if not hasattr(parent, last):
                importlib.import_module(dotted)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_modules_that_a_page_runs_exist(page):
    for module in re.findall(r"python3? -m ((?:und3rstand_jax|convert|train|benchmarks|tests)[\w.]*)", page.read_text()):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


COMMAND_LINES = {
    f"{page} {line}": line
    for page in ("README.md", "docs/getting_started.md")
    for text in code((ROOT / page).read_text())
    for line in re.findall(r"^ *python -m ((?:und3rstand_jax|convert|train) .*)$", text, re.MULTILINE)
    if "--" in line or "…" in line
}


def test_both_pages_of_a_beginner_have_lines_to_read():
    assert sum(name.startswith("README.md") for name in COMMAND_LINES) > 12 and len(COMMAND_LINES) > 24


@pytest.mark.parametrize("line", COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_command_lines_that_a_beginner_copies_are_read_by_the_commands(line):
    program, *words = shlex.split(line, comments=True)
    if words[-1] == "…" and not words[-2].startswith("--"):
        words[-1:] = ["--out", "x"]  # left out as well
    try:
        PROGRAMS[program].options(words)
    except SystemExit as end:
        pytest.fail(f"python -m {line}: status {end.code}")


def test_the_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200
    prose = [line for line in text.splitlines() if not line.startswith(("|", "!", "  "))]
    assert max(map(len, prose)) <= 110, "lines that a terminal shows"


def test_the_tables_of_parity_are_the_figures_that_were_kept():
    assert parity_tables.PAGE.read_text() == parity_tables.page()
    kept = json.loads(parity_tables.FIGURES.read_text())
    shown = (ROOT / "README.md").read_text().partition("## How exact")[2].partition("## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line.startswith("|")][2:]
    summary = {name: case["all arrays"] for model in kept.values() for name, case in model["cases"].items()}
    assert {name.partition(",")[0]: (float(worst), float(median)) for name, worst, median, _ in cells} == {
        name: (values["worst"], values["median"]) for name, values in summary.items()
    }
