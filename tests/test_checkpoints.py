"""A run's checkpoints: which are kept, which is best, and what is told when one cannot be written."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement

from und3rstand_jax.checkpoint.trees import single_process_options, write_tree
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.run.checkpoints import Checkpoints

STATE = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.array(7)}}


def save(folder, errors, keep=1):
    """Saves states with these errors after steps 1, 2, …, from where the folder is; each in a process's own manager."""
    checkpoints = Checkpoints(folder, keep)
    first = (checkpoints.newest() or 0) + 1
    for step, error in enumerate(errors, start=first):
        checkpoints.save(step, {"a": STATE["a"] + step, "b": STATE["b"]}, {"step": step}, error)
        checkpoints.wait()
    checkpoints.close()


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_newest_and_the_best_are_kept_also_by_a_run_that_went_on(tmp_path):
    save(tmp_path, [5.0, 1.0, None, 3.0, None])
    assert kept(tmp_path) == [2, 5]
    save(tmp_path, [None, 2.0])
    assert kept(tmp_path) == [2, 7]
    assert Checkpoints(tmp_path, 1).best() == 2
    save(tmp_path, [0.5], keep=2)
    assert kept(tmp_path) == [7, 8]


def test_what_was_saved_is_read_back_bit_for_bit(tmp_path):
    save(tmp_path, [None, float("nan")], keep=5)
    checkpoints = Checkpoints(tmp_path, 5)
    assert checkpoints.newest() == 2 and checkpoints.best() is None
    read = checkpoints.read(1, STATE)
    assert np.array_equal(read.state["a"], STATE["a"] + 1) and read.state["b"]["c"] == 7
    assert read.record == {"step": 1}
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.read(2, {"other": STATE["a"]})


def test_writing_a_tree_warns_of_nothing(tmp_path, caplog):
    write_tree(tmp_path / "tree", {"a": np.arange(3.0)})
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_nothing_is_there_before_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", 2)
    assert checkpoints.newest() is None and checkpoints.best() is None


def test_what_the_disk_refuses_is_an_error_of_the_system(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)

    def refuse(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", refuse)
    with pytest.raises(OSError, match="a checkpoint could not be written: .*No space left"):
        checkpoints.save(1, STATE, {}, None)


def same_bits(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        type(a) is type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_the_v1_interface_reads_runs_and_trees_bit_for_bit(tmp_path):
    from orbax.checkpoint import v1

    state = {"a": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), "b": {"c": np.array(7)}}
    save(tmp_path / "run", [0.5, 0.25], keep=2)
    with v1.training.Checkpointer((tmp_path / "run").resolve()) as run:
        assert [(one.step, one.metrics) for one in run.checkpoints] == [(1, {"error": 0.5}), (2, {"error": 0.25})]
        read = run.load_checkpointables(2, {"state": STATE, "record": None})
    assert same_bits(read["state"], {"a": STATE["a"] + 2, "b": STATE["b"]}) and read["record"] == {"step": 2}
    write_tree(tmp_path / "tree", state)
    assert same_bits(v1.load((tmp_path / "tree").resolve(), state, checkpointable_name=None), state)


def test_what_keeps_v1_from_writing_is_still_so(tmp_path):
    """Once this fails, see docs/architecture.md: v1 may take v0's place."""
    from orbax.checkpoint import v1

    alone, context = single_process_options(), v1.Context()
    context.multiprocessing.primary_host = alone.primary_host
    context.multiprocessing.active_processes = alone.active_processes
    with pytest.raises(NotImplementedError, match="active_processes"):
        v1.training.Checkpointer(tmp_path.resolve(), context=context)
    context.array.saving.use_ocdbt = context.array.saving.use_zarr3 = False
    with context:
        v1.save((tmp_path / "tree").resolve(), STATE)
    assert sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".zarray")) == ["tree/state/a", "tree/state/b.c"]


def test_orbax_is_bounded_above_and_the_one_installed_is_within():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (orbax,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "orbax-checkpoint")
    assert re.search(r"<0\.\d+$", str(next(bound for bound in orbax.specifier if bound.operator == "<")))
    assert metadata.version("orbax-checkpoint") in orbax.specifier
