"""No test is silently left out where PyTorch is not installed."""

import sys
from pathlib import Path

import pytest

from tests import with_torch

TESTS = Path(__file__).parent


def test_as_many_tests_need_torch_as_are_told(request):
    counts = request.config.stash[with_torch.found]
    assert counts == {file: with_torch.NEED_TORCH.get(file, 0) for file in counts}
    assert [file for file in with_torch.NEED_TORCH if not (TESTS / file).exists()] == []


CASES = """
import pytest
from tests.with_torch import needs_torch

@needs_torch
@pytest.mark.parametrize("number", [1, 2])
def test_marked(number):
    import torch

def test_hidden():
    pytest.importorskip("torch")

def test_skipped_for_another_reason():
    pytest.skip("no disk to mount")

def test_in_any_case():
    pass
"""
MODULE = "import pytest; pytest.importorskip('torch')"


@pytest.fixture
def without_torch(pytester, monkeypatch):
    """A session of its own in this process, with the suite's rules, where torch is not to be had."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(with_torch, "HAS_TORCH", False)
    pytester.makeini("[pytest]\nmarkers = needs_torch")
    return lambda *options: pytester.runpytest_inprocess("-p", "tests.with_torch", *options)


def test_marked_tests_alone_are_skipped_without_torch_and_the_rest_runs(pytester, without_torch):
    pytester.makepyfile(test_cases=CASES)
    result = without_torch()
    result.assert_outcomes(passed=1, skipped=3, failed=1)
    result.stdout.fnmatch_lines(["*test_hidden*mark it with tests.with_torch.needs_torch*", "2 tests skipped for want of torch*"])


def test_a_file_that_skips_itself_is_an_error(pytester, without_torch):
    pytester.makepyfile(test_module=MODULE)
    without_torch().assert_outcomes(errors=1)
