"""What is installed: the packages of the wheel, the extras, and what a command says where one is missing."""

import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from und3rstand_jax.commands.command_line import EXTRAS, run_command

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    """Distributions of requirements that hold here without an extra, in the form in which names are compared."""
    found = [Requirement(text) for text in requirements]
    return {canonicalize_name(one.name) for one in found if one.marker is None or one.marker.evaluate({"extra": ""})}


def installed_with(distributions: set[str]) -> set[str]:
    """These distributions, and all that they require."""
    seen: set[str] = set()
    while new := distributions - seen:
        seen |= new
        distributions = seen.union(*(names(metadata.requires(name) or []) for name in new))
    return seen


CORE = installed_with(names(PROJECT["dependencies"]))


def distributions_of(package: str) -> set[str]:
    """What is installed that holds a package; a wheel that does not say so is called like its package."""
    return {canonicalize_name(name) for name in metadata.packages_distributions().get(package, [package])}


def test_what_a_command_says_is_missing_is_brought_by_the_extra_that_it_names_and_by_nothing_less():
    for package, extra in EXTRAS.items():
        assert distributions_of(package) & names(PROJECT["optional-dependencies"][extra]), package
        assert not distributions_of(package) & CORE, package


def test_every_package_that_only_an_extra_brings_is_known_by_its_import_name():
    extras = PROJECT["optional-dependencies"]
    beyond = (names(extras["report"]) | names(extras["train"])) - {"und3rstand-jax"} - CORE
    assert beyond == set().union(*map(distributions_of, EXTRAS))


def test_the_versions_that_are_tested_are_those_that_are_declared():
    assert PROJECT["requires-python"] == ">=3.11"
    minor = "Programming Language :: Python :: 3."
    assert [line.removeprefix(minor) for line in PROJECT["classifiers"] if line.startswith(minor)] == ["11", "12", "13"]
    (jax,) = (one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "jax")
    assert [jax.specifier.contains(version) for version in ("0.9.2", "0.10.0", "0.12.0.1", "0.13.0")] == [False, True, True, False]


@pytest.mark.parametrize("module", ["und3rstand_jax.train.loop", "convert.__main__", "train"])
def test_what_will_be_gone_in_a_later_version_of_a_package_fails_the_tests(module):
    with pytest.raises(DeprecationWarning, match="gone soon"):
        warnings.warn_explicit("gone soon", DeprecationWarning, "file.py", 1, module)


def test_a_missing_extra_is_one_line_and_status_2(capsys):
    def work() -> None:
        raise ModuleNotFoundError("No module named 'grain.python'", name="grain.python")

    assert run_command(work, debug=False) == 2
    said = capsys.readouterr().err
    assert said == "error: this command needs grain, which is not installed: pip install 'und3rstand_jax[train]'\n"


def test_a_missing_package_of_nobodys_extra_is_a_bug():
    def work() -> None:
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    with pytest.raises(ModuleNotFoundError):
        run_command(work, debug=False)


ABSENT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code where these packages cannot be imported."""
    script = ABSENT.format(absent=packages) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


def test_converting_and_running_import_nothing_of_the_extras():
    absent = {*EXTRAS, "torch"}
    modules = ("loading", "convert.writing", "report.pointmap_files", "report.edited_files")
    run = without(absent, f"import {', '.join(f'und3rstand_jax.{module}' for module in modules)}")
    assert run.returncode == 0, run.stderr


def test_the_report_needs_its_own_extra_alone():
    absent = {package for package, extra in EXTRAS.items() if extra != "report"} | {"torch"}
    run = without(absent, "import und3rstand_jax.report.layer_report")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_a_rendered_scene_needs_nothing_of_the_train_extra():
    absent = {package for package, extra in EXTRAS.items() if extra == "train"} | {"torch"}
    code = """
from und3rstand_jax.analysis.inputs import scene_inputs
inputs = scene_inputs(0, "synthetic", (64, 64))
assert inputs.sizes == ((64, 64), (64, 64)) and inputs.truth is not None
"""
    run = without(absent, code)
    assert run.returncode == 0, run.stderr


def test_depth_in_exr_without_its_library_names_the_extra(tmp_path):
    (tmp_path / "depth.exr").touch()
    code = f"""
from pathlib import Path
from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.data.files.reading import read_exr
sys.exit(run_command(lambda: read_exr(Path({str(tmp_path / "depth.exr")!r})), debug=False))
"""
    run = without({"OpenEXR"}, code)
    assert run.returncode == 2 and "pip install 'und3rstand_jax[train]'" in run.stderr, run.stderr


@pytest.mark.parametrize(
    ("command", "options", "extra"),
    [
        ("run", ["report", "--scene", "0", "--checkpoint", "nowhere", "--out", "nowhere"], "report"),
        ("train", ["--layers", "all"], "train"),
        ("train", ["evaluate", "--checkpoint", "nowhere"], "train"),
    ],
)
def test_a_command_without_its_extra_says_so_before_any_work(command, options, extra, tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); from und3rstand_jax.commands.{command} import main; sys.exit(main({options!r}))"
    run = without(set(EXTRAS), code)
    assert run.returncode == 2, run.stderr
    assert f"pip install 'und3rstand_jax[{extra}]'" in run.stderr and run.stderr.count("\n") == 1, run.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", []),
        ("run", ["report"]),
        ("run", ["edit"]),
        ("convert", []),
        ("train", []),
        ("train", ["plan"]),
        ("train", ["evaluate"]),
        ("train", ["inspect"]),
    ],
)
def test_help_needs_neither_jax_nor_any_extra(command, options):
    run = without({*EXTRAS, "jax", "torch"}, f"from und3rstand_jax.commands.{command} import main; main({[*options, '--help']!r})")
    assert run.returncode == 0, run.stderr
    assert "usage: python -m" in run.stdout


def test_no_module_runs_a_train_py_or_convert_py_of_the_working_directory(tmp_path):
    for name in ("train", "convert", "tests", "benchmarks"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('ran the {name}.py of the working directory')\n")
    code = """
import importlib, pkgutil, sys
sys.path.insert(0, "")
import und3rstand_jax
for module in pkgutil.walk_packages(und3rstand_jax.__path__, "und3rstand_jax."):
    importlib.import_module(module.name)
with open("sentinel.py", "w") as file:
    file.write("seen = True")
assert importlib.import_module("sentinel").seen, "the working directory was not first on the path"
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
