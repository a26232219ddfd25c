"""Shapes and types are checked while tests run, and compiled programs are kept for the session.

Every signature of the floors below is checked at each call: shapes by jaxtyping, types by beartype. Timings need the code
as users run it: UND3RSTAND_JAX_UNCHECKED=1 turns the checks off, as does `-m slow`. What is skipped without torch is counted.
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

# All floors but convert: it deals with names and text, has no shapes, and its recogniser calls small functions by the million.
FLOORS = "support model probes geometry checkpoint data analysis loading train report commands"
CHECKED = [f"und3rstand_jax.{floor}" for floor in FLOORS.split()]

LONGEST = (
    *("test_edit_parity", "test_step", "test_model_properties", "test_parity_torch", "test_inspect_data", "test_training_run"),
    *("test_study_command", "test_accelerator_benchmark", "test_tpu_compile", "test_interruption", "test_tutorials"),
    *("test_many_view_training", "test_recipes"),
    # Apart from the other files that have a model of full size: two of them at once take most of a machine's memory.
    "test_torch_reference_vggt",
    *("test_sweep", "test_edit_starts", "test_study_lens"),
    *("test_pocket", "test_backbone_run", "test_step_memory", "test_edits", "test_jax_settings", "test_attention_weights"),
    *("test_parity_golden", "test_loading", "test_convert", "test_evaluation"),
)

pytest_plugins = ["pytester", "tests.with_torch"]

_QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_MOST_MAPPINGS, _MOST_MEMORY = 12_000, 2.5e9
_DEFAULT = pytest.StashKey[bool]()
_made: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Before the package is imported, before JAX reads the environment, and before pytest-xdist's workers inherit it."""
    if os.environ.get("UND3RSTAND_JAX_UNCHECKED") != "1" and config.option.markexpr != "slow":
        importlib.import_module("tests.signatures")  # the hook looks it up, and imports only `tests`
        jaxtyping.install_import_hook(CHECKED, "tests.signatures.checked")
    # Most of the tests' time is XLA's compiler. The fast ones are compiled quickly, but for those marked `optimised`; the slow ones as
    # users compile them, but for those marked `quick`.
    usual = "1" if config.option.markexpr == "not slow" else "0"
    config.stash[_DEFAULT] = os.environ.setdefault(_QUICK, usual) == "1"
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        # PyTorch's threads wait for each other by spinning. More of them than cores, in several processes, took fifty times as long.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
    if _CACHE not in os.environ:
        # A program that several tests or processes run is compiled once.
        _made.append(tempfile.mkdtemp(prefix="und3rstand_jax_programs_"))
        os.environ[_CACHE] = _made[0]
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process has one of them left when the other is done (`--dist loadfile`)."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_earlier_files_are_let_go() -> Iterator[None]:
    """Every compiled program takes several memory mappings. Linux allows a process 65,530, and beyond that XLA crashes.

    They take memory, too, and what two processes keep of earlier files must leave room for one file that has a model of full size.
    """
    yield
    process = Path("/proc/self")
    if "jax" not in sys.modules or not process.exists():
        return
    mappings = len((process / "maps").read_bytes().splitlines())
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if mappings > _MOST_MAPPINGS or resident > _MOST_MEMORY:
        import jax

        from tests import process_memory

        jax.clear_caches()
        process_memory.give_back()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made, which a file's tests share, and for the processes that the test starts too.

    Tests marked `optimised` have bars about the values, cost or memory of programs compiled as users compile them. Those marked `quick`
    compare what goes the same ways through XLA, or are about files, processes and words.
    """
    marked = {name for name in ("optimised", "quick") if item.get_closest_marker(name)}
    quick = "optimised" not in marked and ("quick" in marked or item.config.stash[_DEFAULT])
    os.environ[_QUICK] = str(int(quick))
    if "jax" not in sys.modules:
        return  # it will read the environment
    import jax

    from tests import quick_programs

    quick_programs.install()
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _working_directory_is_left_as_it_was() -> Iterator[None]:
    """A test that ends in another folder fails by itself: the files of tests that passed are removed, this folder among them, and it
    would be later tests that fail for want of a working directory."""
    before = os.getcwd()
    yield
    try:
        after = os.getcwd()
    except FileNotFoundError:
        after = "a folder that is gone"
    os.chdir(before)
    assert after == before


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that pass what a signature forbids, to see that it is refused with a message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pytest_unconfigure() -> None:
    """By the process that made it."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)
