"""`python -m tests.fuzz --minutes 60` and `python -m tests.fuzz replay FILE`; see the package."""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.fuzz.contract import check, lay_out
from tests.fuzz.kinds import KINDS
from tests.fuzz.session import fuzz, table


def replay(file: Path) -> int:
    """Reads a kept input once more, and says what comes of it. What would kill a worker kills this process."""
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as place:
        kind = KINDS[archive.comment.decode()]
        case = Path(place) / "case"
        case.mkdir()
        lay_out(case, {name: archive.read(name) for name in archive.namelist()})
        outcome = check(kind, case)
    print(f"{outcome.verdict}, {outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB\n{outcome.text}")
    return int(outcome.verdict == "fault")


def main(argv: list[str]) -> int:
    """0, or 1 if there were faults or a kind whose valid seed was not accepted."""
    if argv[:1] == ["replay"]:
        return replay(Path(argv[1]))
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=sys.modules["tests.fuzz"].__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=sorted(KINDS), metavar="KIND", help="; ".join(KINDS))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path(".fuzz"), help="folder for inputs that were faults")
    asked = parser.parse_args(argv)
    tallies = fuzz(asked.minutes * 60, asked.seed, asked.out, asked.only, workers=asked.workers)
    print(table(tallies))
    return int(any(tally.faults or not tally.sound for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
