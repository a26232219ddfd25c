"""What a model's layers know, averaged over held-out synthetic scenes: `python -m benchmarks.layers --checkpoint DIR`.

For every probed layer the normalised point error of both views, the share of right matches between the views (among those whose true
place view 2 sees), and the error of view 2's pose. For every cross-attention head of both views' decoders, the share of its attention on
the true place in the other view. Rotations are found with the true intrinsics; one that is not found counts as 180°. The number after ±
is the standard error over the scenes. Writes layers.json, figures, and tables.md with the tables of docs/pocket.md.
"""

import argparse
from pathlib import Path

import und3rstand_jax as u3d
from und3rstand_jax.analysis.layer_study import study_layers
from und3rstand_jax.analysis.layer_study_files import as_json, attention_figure, layers_figure, tables
from und3rstand_jax.support.text import to_json


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with probes")
    parser.add_argument("--scenes", type=int, default=128, help="number of held-out scenes (default: 128)")
    parser.add_argument("--data", default="synthetic", help="camera placement, as in python -m train (default: synthetic)")
    parser.add_argument("--out", type=Path, default=Path("layers"), help="output folder (default: ./layers)")
    options = parser.parse_args()
    if options.scenes < 2:
        parser.error(f"--scenes {options.scenes}: expected at least 2, to compare a scene's attention with another scene's places")
    study = study_layers(*u3d.load_backbone_and_probe(options.checkpoint), options.scenes, options.data, progress=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "layers.json").write_text(to_json({"scenes": options.scenes, "data": options.data} | as_json(study)))
    for name, figure in (("layers", layers_figure(study.layers)), ("attention", attention_figure(study.attention))):
        for suffix in ("png", "svg"):
            figure.savefig(options.out / f"{name}.{suffix}", dpi=150)
    (options.out / "tables.md").write_text(tables(study))
    print(tables(study))


if __name__ == "__main__":
    main()
