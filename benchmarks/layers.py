"""What a model's layers know, averaged over held-out synthetic scenes: `python -m benchmarks.layers --checkpoint DIR`.

Of every probed layer the normalised point error of both views, how many matches between the views are right (of those whose true place
view 2 sees), and the pose of view 2; of every cross-attention head of both views' decoders, how much of its attention lies on the true
place in the other view. Rotations are found with the true intrinsics; one that is not found counts as 180°. What stands behind ± is the
standard error over the scenes. Writes layers.json, figures, and tables.md with the tables that docs/pocket.md shows.
"""

import argparse
import json
from pathlib import Path

import und3rstand_jax as u3d
from und3rstand_jax.analysis.layer_findings import as_json, findings
from und3rstand_jax.analysis.layer_tables import attention_figure, layers_figure, tables
from und3rstand_jax.support.files import strict_json


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with probes")
    parser.add_argument("--scenes", type=int, default=128, help="held-out scenes (default: 128)")
    parser.add_argument("--data", default="synthetic", help="how their cameras stand, as in python -m train (default: synthetic)")
    parser.add_argument("--out", type=Path, default=Path("layers"), help="folder to write (default: ./layers)")
    options = parser.parse_args()
    if options.scenes < 2:
        parser.error(f"--scenes {options.scenes}: expected at least 2, to compare a scene's attention with another scene's places")
    found = findings(*u3d.load_backbone_and_probe(options.checkpoint), options.scenes, options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"scenes": options.scenes, "data": options.data} | as_json(found)
    (options.out / "layers.json").write_text(json.dumps(strict_json(facts), indent=1, allow_nan=False) + "\n")
    for name, figure in (("layers", layers_figure(found.layers)), ("attention", attention_figure(found.attention))):
        for suffix in ("png", "svg"):
            figure.savefig(options.out / f"{name}.{suffix}", dpi=150)
    (options.out / "tables.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
