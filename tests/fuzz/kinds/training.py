"""What a training run reads: options in a file, the folder of an earlier run, its checkpoints, its log as a curve."""

import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.contract import Files, Kind
from tests.fuzz.kinds import material

_STEP = 4
_LAYER = "decoder.0.mlp"


def _config_seeds() -> Sequence[Files]:
    from und3rstand_jax.train.options import BackboneOptions, TrainOptions

    texts = ("steps: 1000\ndata: [synthetic, 'pairs:photos']\nlearning-rate: 1e-4\nhidden: 8\n", '{"steps": 3, "data": "synthetic"}')
    runs = [material.made(functools.partial(_write_config, kind())) for kind in (TrainOptions, BackboneOptions)]
    return [*({"config.yaml": text.encode()} for text in texts), *runs]


def _write_config(options: Any, folder: Path) -> None:
    from und3rstand_jax.train.config_file import option_values, write_config

    write_config(folder / "config.yaml", option_values(options))


def _read_config(folder: Path) -> None:
    from und3rstand_jax.support.errors import OptionError
    from und3rstand_jax.train.config_file import read_config
    from und3rstand_jax.train.options import BackboneOptions, TrainOptions

    try:
        read_config(folder / "config.yaml", TrainOptions)
    except OptionError:
        read_config(folder / "config.yaml", BackboneOptions)


def _log_seeds() -> Sequence[Files]:
    from und3rstand_jax.model.layer_ids import HEAD

    lines: list[dict[str, Any]] = [{"step": 1, "event": "began\u2028again"}]
    for step in (2, 4):
        lines.append(
            {
                "step": step,
                "pairs_per_second": 3.5,
                "layers": {HEAD: dict.fromkeys(("total", "view1", "view2", "regression1", "regression2"), 0.5)},
            }
        )
        lines.append({"step": step, "validation": {HEAD: {"view1": 0.4, "view2": 0.5}}})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    return [{"metrics.jsonl": text.encode()}, {"metrics.jsonl": text.encode()[:-20]}]


def _read_curve(folder: Path) -> None:
    from und3rstand_jax.train.learning_curve import joined, read_curve

    curve = read_curve(folder / "metrics.jsonl")
    assert joined([curve, curve]).steps >= curve.steps


def _plot_curve(folder: Path) -> None:
    from und3rstand_jax.commands.learning_curve import LearningCurveOptions, learning_curve

    learning_curve(LearningCurveOptions((folder / "metrics.jsonl",), 4, folder / "curve.png"))


@functools.cache
def _run_seeds() -> Sequence[Files]:
    def write(folder: Path) -> None:
        (folder / "material").mkdir()
        for name, content in material.converted().items():
            file = folder / "material" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        with contextlib.chdir(folder):
            _save_run()
        (folder / "run" / "skipped.txt").write_text("2\tpairs:photos\ta.jpg: cannot be read\n9\tpairs:photos\tb.jpg: no\n")
        (folder / "run" / "metrics.jsonl").write_bytes(_log_seeds()[0]["metrics.jsonl"])

    return [material.made(write)]


def _options() -> Any:
    from und3rstand_jax.train.options import TrainOptions

    given = {"steps": 20, "batch_size": 2, "layers": _LAYER, "hidden": 8, "depth": 2, "workers": 0}
    return TrainOptions(data=("synthetic",), out=Path("run"), backbone="material/checkpoint", **given)


def _task() -> Any:
    from und3rstand_jax.train.run.training import make_task

    return make_task(_options())


@functools.cache
def _initial_state() -> Any:
    """The same for every input, since no file says what it is; to make it, JAX compiles for seconds."""
    import jax

    return jax.device_get(_task().initial_state())


def _save_run() -> None:
    """A run that was interrupted after some steps, in the working directory."""
    from und3rstand_jax.train.run.checkpoints import Checkpoints
    from und3rstand_jax.train.run.folder import CHECKPOINTS, run_folder
    from und3rstand_jax.train.run.metrics_log import LossWindow

    task = _task()
    record = {"step": _STEP, "pairs": 8, "window": LossWindow().record(), "frozen": {_LAYER: 3}, "unreadable": 1, "validation_due": True}
    with run_folder(task.options, task.identity), Checkpoints(task.options.out / CHECKPOINTS, 2) as checkpoints:
        checkpoints.save(_STEP, _initial_state(), record, 0.5)


def _resume(folder: Path) -> None:
    """All that a run reads when it is resumed."""
    from und3rstand_jax.data.loader import open_sources
    from und3rstand_jax.train.run.checkpoints import Checkpoints
    from und3rstand_jax.train.run.folder import CHECKPOINTS, run_folder
    from und3rstand_jax.train.run.loop import Data, Loop

    with contextlib.chdir(folder):
        task = _task()
        data = Data(open_sources(task.feed.specs, "train"), open_sources(task.val_feed.specs, "val"))
        with run_folder(task.options, task.identity), Checkpoints(task.options.out / CHECKPOINTS, 2) as checkpoints:
            newest = checkpoints.newest()
            checkpoints.best()
            saved = None if newest is None else checkpoints.read(newest, _initial_state())
            loop = Loop(task, data, checkpoints, newest or 0, saved.record if saved else {})
            with loop.closing():
                assert saved is None or np.isfinite(int(np.asarray(saved.state.step).flat[0]))


KINDS = (
    Kind("training options", _config_seeds, _read_config),
    Kind("training log", _log_seeds, _read_curve),
    Kind("learning curve", _log_seeds, _plot_curve),
    Kind("training run", _run_seeds, _resume, ("run/*.json", "run/*.yaml", "run/*.jsonl", "run/*.txt")),
    Kind("training checkpoint", _run_seeds, _resume, ("run/checkpoints/*",)),
)
