"""What a run that trains a backbone ends with: the checkpoint, its errors on held-out pairs, and how it learned."""

import json
from pathlib import Path
from typing import Any

from train.run.checkpoints import Checkpoints
from train.run.config_file import option_values, replace_text
from train.run.learning_curve import Curve, plot_curve, read_curve
from train.run.metrics_log import JSONL
from train.setup import BackboneSetup
from train.step.backbone_step import BackboneState
from train.trained_checkpoint import write_trained_backbone
from und3rstand_jax.strict_json import strict_json

BACKBONE, METRICS, PLOT = "backbone", "metrics.json", "learning_curve.png"


def finish_backbone(setup: BackboneSetup, source: Path | None, checkpoints: Checkpoints, state: BackboneState) -> None:
    """Writes `backbone/`, `metrics.json` and `learning_curve.png`.

    Args:
        setup: of the run.
        source: the converted checkpoint it went on from.
        checkpoints: to take the best from, where that is asked for.
        state: after the last step; NumPy arrays.
    """
    options, out = setup.options, setup.options.out
    step = int(state.step)
    if options.export == "best" and (best := checkpoints.best()) is not None and best != step:
        state, step = checkpoints.read(best, state).state, best
    curve = read_curve(out / JSONL)
    facts = {"step": step, "pairs": step * (options.batch_size or 0), "options": option_values(options), "errors": _errors_at(curve, step)}
    write_trained_backbone(out / BACKBONE, setup.backbone, state.params, facts, source, overwrite=True)
    replace_text(out / METRICS, json.dumps(strict_json(facts), indent=1, allow_nan=False) + "\n")
    plot_curve(out / PLOT, curve, options.batch_size or 0)
    print(f"normalised point error on {options.val_pairs} held-out pairs after step {step}: {_told(facts['errors'])}")
    print(f"backbone:       {out / BACKBONE}\nlearning curve: {out / PLOT}")
    print(f"in PyTorch's layout: python -m convert --repo {out / BACKBONE} --to-torch DIR")


def _errors_at(curve: Curve, step: int) -> dict[str, float] | None:
    """Of the validation after that step, which every run ends with."""
    return next((errors for at, errors in curve.validations if at == step), None)


def _told(errors: Any) -> str:
    return "not measured" if errors is None else f"view 1 {errors['view1']:.4f}, view 2 {errors['view2']:.4f}"
