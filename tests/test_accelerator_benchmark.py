"""`python -m benchmarks.accelerator`: all of it on a small model, its tables, and what becomes of parts that fail or do not fit."""

import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accelerator
from benchmarks.accelerator_parts import packages
from benchmarks.accelerator_parts.measure import DONE, NO_CUDNN, NO_TIME, NO_TORCH, Run
from benchmarks.accelerator_parts.plan import FULL, MINUTES, PRECISIONS, SMALL, Part, parts
from benchmarks.accelerator_parts.process import Failed, OutOfTime, Process
from benchmarks.accelerator_parts.tables import tables
from benchmarks.accelerator_parts.training import summary

ROOT = Path(__file__).parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None
TEST_MINUTES = 12
"""More than the command's own: a machine of CI may have much else to do."""
OF_OTHERS = {"absl-py", "pyyaml"}
"""Dependencies of ours that are imported by packages that need them as well."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command with --small: what it printed, and the results that it wrote."""
    file = tmp_path_factory.mktemp("accelerator") / "results.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", "--minutes", str(TEST_MINUTES), "--out", str(file)]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


@pytest.fixture(scope="module")
def document(finished):
    return finished[1]


def of(document, kind):
    return [part for part in document["parts"] if part["kind"] == kind]


@pytest.mark.slow
def test_every_part_is_done_or_says_why_not(document):
    assert [part["name"] for part in document["parts"]] == [part.name for part in parts(SMALL)]
    for part in document["parts"]:
        assert part["status"] == (NO_CUDNN if part.get("attention") == "cudnn" else DONE), part["name"]
    sides = [side for part in document["parts"] for side in part.get("result", {}).get("torch", {}).values() if isinstance(side, dict)]
    sides = [side for side in sides if "status" in side]
    # Two forward passes at the first batch and one at the second, one of VGGT, and of the steps two orders at three precisions.
    assert [side["status"] for side in sides] == [DONE if HAS_TORCH else NO_TORCH] * 10


@pytest.mark.slow
def test_the_machine_is_told(document):
    (machine,) = of(document, "machine")
    assert machine["result"]["backend"] == "cpu"
    assert {"python", "jax", "flax", "optax"} <= machine["result"]["versions"].keys()
    assert ("torch" in machine["result"]) == HAS_TORCH
    assert 0 < document["seconds"] < 60 * TEST_MINUTES


@pytest.mark.slow
def test_ceilings_are_positive(document):
    (ceilings,) = of(document, "ceilings")
    assert ceilings["result"]["torch"]["status"] == (DONE if HAS_TORCH else NO_TORCH)
    for side in ("jax", "torch") if HAS_TORCH else ("jax",):
        rates = {name: value for name, value in ceilings["result"][side].items() if name != "status"}
        assert rates.keys() == {"float32", "TF32", "bfloat16", "copy"}
        assert all(1e6 < rate < 1e14 for rate in rates.values())


@pytest.mark.slow
def test_parity_is_within_the_tested_bound(document):
    exact, rounded = of(document, "golden")
    with np.load(ROOT / "tests/golden/tiny_dpt.npz") as golden:
        assert exact["result"]["arrays"] == rounded["result"]["arrays"] == len(golden.files)
    worst, median = exact["result"]["groups"]["all arrays"]
    assert 0.5 < median < worst <= 2
    worst, median = rounded["result"]["groups"]["all arrays"]
    assert 1e-3 < median < worst < 3e-2


@pytest.mark.slow
def test_forward_passes_and_steps_are_timed_round_by_round(document):
    for part in [part for part in of(document, "forward") if part["attention"] == "xla"] + of(document, "step") + of(document, "vggt"):
        ours, theirs = part["result"]["jax"], part["result"]["torch"]
        assert len(ours["seconds"]) == SMALL.rounds and min(ours["seconds"]) > 0
        assert ours["compile_s"] > 0 and ours["gb"] > 0
        for side in theirs.values():
            assert not HAS_TORCH or (len(side["seconds"]) == SMALL.rounds and min(side["seconds"]) > 0)
    captured = [part["result"]["jax"]["captured"] for part in of(document, "forward") if part["status"] == DONE]
    assert captured == ["every layer", "every layer", "decoder layers"]


@pytest.mark.slow
def test_on_a_cpu_all_precisions_are_one(document):
    losses = {part["result"]["jax"]["first_loss"] for part in of(document, "step")}
    assert len(losses) == 1 and math.isfinite(losses.pop())
    (training,) = of(document, "training")
    result = training["result"]
    assert result["errors"].keys() == set(PRECISIONS)
    assert result["errors"]["highest"] == result["errors"]["high"] == result["errors"]["default"]
    assert np.shape(result["errors"]["highest"]) == (SMALL.training.seeds, len(result["layers"]))
    assert all(found["difference"] == 0 and found["spread"] > 0 for found in result["summary"].values())
    # A few steps are enough to be better than the initial probes.
    assert np.mean(result["errors"]["highest"]) < np.mean(result["untrained"])


@pytest.mark.slow
def test_the_tables_are_made_from_the_results_alone(finished, document, capsys, tmp_path):
    printed, _ = finished
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    assert accelerator.main(["--tables", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == printed.strip()
    (forward,) = [part for part in of(document, "forward") if (part["batch"], part["dtype"], part["attention"]) == (2, "float32", "xla")]
    median = statistics.median(forward["result"]["jax"]["seconds"])
    (row,) = re.findall(r"^\| 2 \| float32 \| xla \|.*$", shown, re.MULTILINE)
    assert f"| {1000 * median:.4g} [" in row and f"| {2 / median:.3g} |" in row
    worst, middle = of(document, "golden")[0]["result"]["groups"]["all arrays"]
    assert f"| all arrays | {worst:.2f}, {middle:.2f} |" in shown
    (rendering,) = of(document, "rendering")
    assert f"| 32×32 | 2 | {statistics.median(rendering['result']['sizes'][0]['rates']):.4g} [" in shown
    for step in of(document, "step"):
        assert f"| {step['result']['jax']['first_loss']:.6f} |" in shown


@pytest.mark.slow
def test_it_imports_what_it_says_it_needs(document):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*declared["dependencies"], *(name for extra in declared["optional-dependencies"].values() for name in extra)]
    ours = {canonical(re.split(r"[><=;\[ ]", name)[0]) for name in names} - {"torch", "und3rstand-jax"}
    assert (set(map(canonical, document["imported"])) & ours) - OF_OTHERS == set(map(canonical, packages.NEEDED.values()))


def canonical(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_what_is_missing_is_named_with_how_to_bring_it(monkeypatch, capsys):
    monkeypatch.setitem(packages.NEEDED, "no_such_module", "no-such-package")
    monkeypatch.setitem(packages.NEEDED, "no_such.package", "another")
    assert accelerator.main(["--small"]) == 2
    told = capsys.readouterr().err
    assert "not installed here: no-such-package, another\n" in told
    assert re.search(
        r"pip download --only-binary=:all: --python-version 3\.\d+ --platform manylinux\S+ .*-d wheels no-such-package another\n", told
    )
    assert "pip install --no-index --find-links wheels no-such-package another\n" in told


class Slow:
    """What a process is asked for in these tests."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def sleep(self) -> None:
        time.sleep(60)

    def fail(self) -> None:
        raise ValueError("first line\nsecond line")

    def die(self) -> None:
        os._exit(7)


def test_a_process_ends_with_its_time_and_with_its_failures():
    process = Process(f"{__name__}:Slow")
    assert [process.call(60, "count") for _ in range(2)] == [1, 2]
    with pytest.raises(Failed, match="^ValueError: first line$"):
        process.call(60, "fail")
    assert not process.is_there
    assert process.call(60, "count") == 1
    start = time.monotonic()
    with pytest.raises(OutOfTime):
        process.call(0.2, "sleep")
    assert time.monotonic() - start < 20 and not process.is_there
    with pytest.raises(Failed, match="exit status 7"):
        process.call(60, "die")
    process.end()


class FailingRun(Run):
    """A run whose parts need no processes."""

    def machine(self):
        raise Failed("RuntimeError: no device")

    def ceilings(self):
        raise OutOfTime

    def checkpoint(self):
        return {"found": 1}


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path):
    run = FailingRun(SMALL, tmp_path, MINUTES)
    entries = [run.take(Part(kind, {}, 7, 2)) for kind in ("machine", "ceilings", "checkpoint")]
    assert [entry["status"] for entry in entries] == ["failed: RuntimeError: no device", "not run: took longer than its 7 s", DONE]
    assert entries[2]["result"] == {"found": 1}
    assert run.take(Part("golden", {"dtype": "float32"}, 7, 2))["status"] == "not run: there is no checkpoint"
    assert accelerator.statuses(entries) == [entry["status"] for entry in entries]
    run.finish()


def test_without_time_nothing_is_run_and_all_of_it_is_in_the_file_and_the_tables(tmp_path):
    written = accelerator.measure("command", small=False, minutes=0, out=tmp_path / "out.json", work=tmp_path / "work")
    assert written == json.loads((tmp_path / "out.json").read_text())
    assert {part["status"] for part in written["parts"]} == {NO_TIME}
    shown = tables(written)
    assert shown.count(NO_TIME) >= 2 * len(parts(FULL)) - 2
    assert all(part.name in shown for part in parts(FULL))


def test_the_full_run_has_every_part_once_the_most_valuable_first():
    names = [part.name for part in parts(FULL)]
    assert len(set(names)) == len(names)
    for batch in (1, 8, 32):
        for kind in ("float32, xla", "bfloat16, xla", "bfloat16, cudnn"):
            assert f"forward, batch {batch}, {kind}" in names
    for batch in (1, 8):
        assert all(f"step, batch {batch}, {precision}" in names for precision in PRECISIONS)
    batches = [part.batch for part in parts(FULL) if part.kind != "vggt"]
    assert batches == sorted(batches)
    assert names.index("golden, float32") < names.index("step, batch 1, highest") < names.index("forward, batch 8, float32, xla")


def test_differences_at_equal_seeds_are_told_from_the_spread_over_seeds():
    highest = np.array([[1.0, 2.0], [3.0, 6.0]])
    found = summary({"highest": highest, "high": highest * 1.1})
    # Over seeds, both layers are 1 ± √0.5 of their mean, (2, 4), at any precision; scaled by 1.1 with it.
    assert found["highest"] == pytest.approx(
        {"error": 3, "spread": 0.5**0.5, "difference": 0, "layer_spread": 0.5**0.5, "layer_difference": 0}
    )
    assert found["high"]["difference"] == pytest.approx(0.1)
    assert found["high"]["spread"] == pytest.approx(1.1 * 0.5**0.5)
    assert found["high"]["layer_difference"] == pytest.approx(0.1 * 1.25**0.5)
