"""Learning curves from logs, of one run and of several in a row."""

import json

from PIL import Image

from und3rstand_jax.commands.train import main
from und3rstand_jax.train.learning_curve import joined, read_curve


def write_log(file, steps, error):
    """A line of training every 10 steps and a validation at the end, with errors that tell which is which."""
    loss = {"view1": 0.0, "view2": 0.0, "regression1": error, "regression2": error + 1}
    lines = [{"step": step, "layers": {"head": loss}} for step in range(10, steps + 1, 10)]
    lines.append({"step": steps, "validation": {"head": {"view1": error + 2, "view2": error + 3}}})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_runs_that_went_on_from_each_other_count_their_steps_on(tmp_path):
    logs = [write_log(tmp_path / f"{steps}.jsonl", steps, error) for steps, error in ((20, 5.0), (30, 7.0), (10, 9.0))]
    curve = joined([read_curve(log) for log in logs])
    assert [step for step, _ in curve.training] == [10, 20, 30, 40, 50, 60]
    assert [errors["view1"] for _, errors in curve.training] == [5, 5, 7, 7, 7, 9]
    assert curve.validations == ((20, {"view1": 7, "view2": 8}), (50, {"view1": 9, "view2": 10}), (60, {"view1": 11, "view2": 12}))
    assert curve.begins == (20, 50) and curve.steps == 60


def test_the_command_draws_them_and_names_a_log_that_is_missing(tmp_path, capsys):
    log, picture = write_log(tmp_path / "a.jsonl", 20, 0.5), tmp_path / "curve.png"
    assert main(["learning-curve", str(log), str(log), "--batch-size", "4", "--out", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.size == (1050, 600)
    assert main(["learning-curve", str(log), str(tmp_path / "b.jsonl"), "--batch-size", "4"]) == 2
    assert f"{tmp_path / 'b.jsonl'} does not exist" in capsys.readouterr().err
