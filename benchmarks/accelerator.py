"""Measures everything we want to know about an accelerator, in at most 6 minutes: `python -m benchmarks.accelerator`.

In order of value: the ceilings (matrix products, memory); parity with the golden `full_512_dpt`, on the device; the forward pass with
heads, 512×384, and the training step of 36 probes, 512×512, each in turn with PyTorch's in the same run; whether the probes may be
trained at a lower precision; the renderer; VGGT's forward pass with 2 and 8 views; and then larger batches. PyTorch and JAX each run in
their own process.

Every part has a time limit, and all parts together have --minutes. Parts that are not reached are recorded as "not run: no time left",
a part that fails as "failed: …", and the others continue; the exit status is 1 if anything failed. The results so far are in --out after
every part, so a run that is killed loses nothing. `--tables FILE.json` prints the tables again; those of docs/accelerators.md are made
this way.

Most of the time is compilation. On an H100 or H200, each program at full size takes an estimated minute, and there are seven at batch 1,
so 6 minutes reach about the training step. The estimate is from compilations of 60 to 135 s, several at once, of an earlier version; it
has not been measured since. With --work DIR, compiled programs are kept, and repeating the command continues with the larger batches.
`--small` runs all of it on a small model; on two CPU cores it took 110 s.
"""

import argparse
import datetime
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.packages import how_to_bring, missing


def main(argv: list[str] | None = None) -> int:
    """Measures, writes and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit for everything (default: 6)")
    parser.add_argument("--small", action="store_true", help="a small model and small sizes, to try the command itself, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("accelerator.json"), help="file for the results (default: ./accelerator.json)")
    parser.add_argument("--work", type=Path, help="folder to keep checkpoints (4.6 GB) and compiled programs in (default: a temporary one)")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: print the tables of these results")
    options = parser.parse_args(argv)
    lacking = missing()
    if lacking:
        print(how_to_bring(lacking), file=sys.stderr)
        return 2
    from benchmarks.accelerator_parts.tables import tables

    if options.tables:
        print(tables(json.loads(options.tables.read_text())))
        return 0
    words = shlex.join(["python", "-m", "benchmarks.accelerator", *(sys.argv[1:] if argv is None else argv)])
    with tempfile.TemporaryDirectory() as temporary:
        document = measure(words, options.small, options.minutes, options.out, options.work or Path(temporary))
    print(tables(document))
    return int(any("failed" in status for status in statuses(document["parts"])))


def measure(words: str, small: bool, minutes: float, out: Path, work: Path) -> dict[str, Any]:
    """Measures all parts and writes the results after each; see `main`. Returns them as written to the file."""
    from benchmarks.accelerator_parts.measure import NO_TIME, Run
    from benchmarks.accelerator_parts.plan import FULL, SMALL, parts
    from und3rstand_jax.support.files import replace_text
    from und3rstand_jax.support.text import strict_json, to_json

    work.mkdir(parents=True, exist_ok=True)
    sizes = SMALL if small else FULL
    order = parts(sizes)
    document: dict[str, Any] = {
        "command": words,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _first_line("git", "rev-parse", "HEAD"),
        "driver": _first_line("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "model": {"case": sizes.case, "forward": list(sizes.golden[1:]), "step": list(sizes.step_shape)},
        "seconds": 0.0,
        "imported": [],
        "parts": [{"name": part.name, "kind": part.kind, **part.setting, "status": NO_TIME, "seconds": 0.0} for part in order],
    }
    replace_text(out, to_json(document))
    run = Run(sizes, work, minutes)
    try:
        run.begin()
        for entry, part in zip(document["parts"], order, strict=True):
            entry |= run.take(part)
            document["seconds"] = run.elapsed()
            replace_text(out, to_json(document))
            print(f"[{run.elapsed():5.0f} s] {part.name}: {entry['status']} ({entry['seconds']:.1f} s)", file=sys.stderr, flush=True)
    finally:
        run.finish()
    document["imported"] = sorted(run.imported)
    replace_text(out, to_json(document))
    return strict_json(document)


def statuses(value: Any) -> list[str]:
    """Every status in the results, including those of single sides."""
    if isinstance(value, list):
        return [status for item in value for status in statuses(item)]
    if isinstance(value, dict):
        return [*([value["status"]] if "status" in value else []), *statuses(list(value.values()))]
    return []


def _first_line(*command: str) -> str | None:
    """The first line that a program prints; None if there is no such program, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


if __name__ == "__main__":
    sys.exit(main())
