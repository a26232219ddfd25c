"""Makes checkpoints in the hub's layout, with deterministic random weights: `python -m tests.make_checkpoint --case tiny_dpt --out DIR`.

DIR/backbone is laid out like `naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt`, DIR/probes like a probe checkpoint on top of it. The
weights are those of the golden cases (`tests/golden/weights.py`): a case at full size has every name and shape of the real file, and so
has that of a published model whose names are listed in `tests/golden` (`--case MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric`,
`--case vggt_1b`, which has the track head too). For a VGGT there is DIR/backbone alone.
"""

import argparse
import concurrent.futures
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import weights, weights_vggt
from und3rstand_jax.model.families import published_config
from und3rstand_jax.model.layer_ids import DECODER_STEPS
from und3rstand_jax.model.vggt.config import VGGTConfig

GOLDEN = Path(__file__).parent / "golden"
CASES = [path.stem for path in GOLDEN.glob("*.json") if not path.stem.startswith(("edit_", "utils_"))]
LISTED = [path.name.removesuffix(".keys.tsv") for path in GOLDEN.glob("*.keys.tsv")]
_SEED = 43  # of the listed models, which have none
_PUBLISHED = {"vggt_1b": "VGGT-1B"}  # other lists are called as their model
PROBE_LINEARS = (0, 2, 4, 6, 8)  # in a Sequential, with activations between them


def backbone_state_dict(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The case's weights under the original's names, second names left out as on the hub."""
    shapes = {name: tuple(shape) for name, shape in case["state_dict"].items() if ".layer_rn." not in name}
    tensor = weights_vggt.tensor if "aggregator.camera_token" in shapes else weights.tensor
    with concurrent.futures.ThreadPoolExecutor() as pool:  # at full size 571 million draws, or twice as many
        return dict(zip(shapes, pool.map(lambda name: tensor(name, shapes[name], case["seed"]), shapes), strict=True))


def probe_state_dict(width: int, hidden: int, layers: int, seed: int, name: str = "probes.{layer}.mlp.{step}") -> dict[str, np.ndarray]:
    """Five-layer MLPs, one a layer, from a token of `width` channels to pointmap and confidence of a 16×16 patch."""
    sizes = (width, hidden, hidden, hidden, hidden, 4 * 16**2)
    tensors = {}
    for layer in range(layers):
        for step, size_in, size_out in zip(PROBE_LINEARS, sizes[:-1], sizes[1:], strict=True):
            key = name.format(layer=layer, step=step)
            tensors[f"{key}.weight"] = weights.tensor(f"{key}.weight", (size_out, size_in), seed)
            tensors[f"{key}.bias"] = weights.tensor(f"{key}.bias", (size_out,), seed)
    return tensors


def save_hub_folder(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Path:
    """`config.json` (with bare Infinity, as the hub's) and `model.safetensors`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


def case_of(name: str) -> dict[str, Any]:
    """A golden case's json, or as much of one as makes a published model."""
    if (GOLDEN / f"{name}.json").exists():
        case = json.loads((GOLDEN / f"{name}.json").read_text())
        return case | {"config": vggt_config(case["config"]).to_hub_config()} if "embed_dim" in case["config"] else case
    rows = [line.split("\t") for line in (GOLDEN / f"{name}.keys.tsv").read_text().splitlines()[1:]]
    state_dict = {key: [int(side) for side in shape.split("x")] for key, shape in rows}
    return {"config": published_config(_PUBLISHED.get(name, name)).to_hub_config(), "state_dict": state_dict, "seed": _SEED}


def vggt_config(config: Mapping[str, Any]) -> VGGTConfig:
    """The architecture that the `config` of a golden case of VGGT describes."""
    encoder, camera, dpt = config["encoder"], config["camera_head"], config["depth_head"]
    return VGGTConfig(
        img_size=(config["img_size"], config["img_size"]),
        **{field: config[field] for field in ("patch_size", "embed_dim", "depth", "num_heads")},
        num_registers=config["num_register_tokens"],
        enc_depth=encoder["depth"],
        enc_num_heads=encoder["num_heads"],
        camera_depth=camera["trunk_depth"],
        camera_num_heads=camera["num_heads"],
        camera_iterations=camera["num_iterations"],
        dpt_width=dpt["features"],
        dpt_channels=tuple(dpt["out_channels"]),
        dpt_layers=tuple(dpt["intermediate_layer_idx"]),
    )


def make(case_name: str, out: Path, hidden: int) -> None:
    """Writes out/backbone and, for a model with a decoder, out/probes."""
    case = case_of(case_name)
    config = case["config"]
    save_hub_folder(out / "backbone", backbone_state_dict(case), config)
    if "dec_depth" not in config:
        return
    probes = probe_state_dict(config["dec_embed_dim"], hidden, len(DECODER_STEPS) * config["dec_depth"], case["seed"])
    save_hub_folder(out / "probes", probes, {"base_model": str((out / "backbone").resolve()), "activation": "gelu"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="tiny_dpt", choices=sorted([*CASES, *LISTED]))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512, help="hidden width of the probes")
    arguments = parser.parse_args()
    make(arguments.case, arguments.out, arguments.hidden)
    print(arguments.out)
