"""A run's checkpoints: which are kept, which is best, and what is told when one cannot be written."""

import numpy as np
import pytest

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
