"""`python -m train learning-curve LOG… --batch-size N`: how a backbone learned, as a picture.

Takes the metrics.jsonl of one run, or of several that went on from each other.
"""

import argparse
from pathlib import Path

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.run.learning_curve import joined, plot_curve, read_curve


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="metrics.jsonl of each run, in their order")
    parser.add_argument("--batch-size", type=int, required=True, help="pairs a step, the same in all of them")
    parser.add_argument("--out", type=Path, default=Path("learning_curve.png"), help="picture to write (default: ./learning_curve.png)")
    options = parser.parse_args(argv)
    return run_command(lambda: _draw(options.logs, options.batch_size, options.out), debug=False)


def _draw(logs: list[Path], batch_size: int, out: Path) -> None:
    missing = [str(log) for log in logs if not log.is_file()]
    if missing:
        raise UserError(f"there is no log {' and no log '.join(missing)}; expected the metrics.jsonl of runs")
    plot_curve(out, joined([read_curve(log) for log in logs]), batch_size)
    print(out)
