"""Tests that compare with PyTorch, or that need it to write a file: without it they are skipped, and how many they are is kept here.

`@needs_torch` marks such a test or, as `pytestmark`, a whole module, which imports torch `if HAS_TORCH`. This is a plugin of pytest too:
whatever else is skipped for want of torch fails, and so does a number of marked tests that is not the one below
(`tests/test_with_torch.py`).
"""

import importlib.util
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
WHY = "compares with PyTorch or writes its files, and torch is not installed"

needs_torch = pytest.mark.needs_torch

NEED_TORCH = {
    "test_attention_weights.py": 1,
    "test_backbone_step.py": 2,
    "test_convert.py": 7,
    "test_convert_failures.py": 8,
    "test_edit_parity.py": 6,
    "test_fuzz.py": 1,
    "test_gelu.py": 2,
    "test_original_names.py": 4,
    "test_parity_golden.py": 4,
    "test_parity_torch.py": 17,
    "test_pickles.py": 49,
    "test_sources.py": 3,
    "test_step_parity_torch.py": 3,
    "test_torch_reference.py": 105,
    "test_torch_reference_edits.py": 82,
    "test_torch_reference_vggt.py": 36,
    "test_vggt_convert.py": 1,
    "test_vggt_parity_torch.py": 13,
}
"""File -> how many of its tests, fast and slow, need torch."""

found = pytest.StashKey[dict[str, int]]()
"""Of the configuration: the same of the files that were collected, 0 included."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Counts the marked tests of every file collected whole, before `-m` and `-k` leave any out; without torch, skips them."""
    in_part = {Path(arg.partition("::")[0]).name for arg in config.args if "::" in arg}
    counts: Counter[str] = Counter()
    for item in items:
        marked = _is_marked(item)
        if item.path.name not in in_part:
            counts[item.path.name] += marked
        if marked and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason=WHY))
    config.stash[found] = dict(counts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself for want of torch fails: nobody would know that it is never run."""
    report = yield
    if report.skipped and not _is_marked(item) and "torch" in _reason(report):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: mark it with tests.with_torch.needs_torch; {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips itself as a whole fails too: how many tests it has is not to be seen."""
    report = yield
    if report.outcome == "skipped":
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} skips itself: mark its tests instead; {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests did not run, and why."""
    skipped = sum(_reason(report) == f"Skipped: {WHY}" for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.line(f"{skipped} tests skipped for want of torch, of {sum(NEED_TORCH.values())} in the suite: each {WHY}")


def _reason(report: pytest.TestReport) -> str:
    """What follows the file and the line of a skip."""
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else ""


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker(needs_torch.name) is not None
