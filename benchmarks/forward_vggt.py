"""VGGT's part of `python -m benchmarks.forward --model vggt`: the 1B model on V views of one size.

PyTorch is the reference of the tests with scaled_dot_product_attention; all sides run the camera, depth and point heads.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matmul_rate import jax_matmul_rate, torch_matmul_rate
from benchmarks.workers import Worker, both_layouts
from und3rstand_jax.support.text import markdown_table

CASE = "full_vggt_1b"
HEADS = ("camera", "depth", "points")


def build_torch(folder: Path, views: int, size: tuple[int, int], dtype: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The PyTorch reference on this page's views, and its ceiling."""
    import torch

    run = torch_forward(CASE, folder, views, size, dtype)
    return run, {"matmul": torch_matmul_rate("cuda" if torch.cuda.is_available() else "cpu", dtype)}


def torch_forward(case: str, folder: Path | None, views: int, size: tuple[int, int], dtype: str) -> Callable[[], None]:
    """The PyTorch reference with the weights in a folder, else random ones; bfloat16 is under autocast, as the original is used."""
    import json

    import torch
    from safetensors.torch import load_file

    from tests.golden_cases import GOLDEN
    from tests.torch_reference.vggt import VGGTReference, load_vggt
    from tests.torch_reference.vggt_config import VGGTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = VGGTConfig.of_case(json.loads((GOLDEN / f"{case}.json").read_text())["config"])
    if folder is None:
        with torch.device(device):
            model = VGGTReference(config).eval()
    else:
        model = load_vggt(config, load_file(folder / "model.safetensors")).to(device).eval()
    images = torch.from_numpy(np.stack(made_views(views, size), axis=1)).permute(0, 1, 4, 2, 3).to(device) * 0.5 + 0.5

    def run() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            model(images)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def build_jax(
    folder: Path, views: int, size: tuple[int, int], dtype: str, capture: str, head: tuple[str, ...]
) -> tuple[Callable[[], None], dict[str, Any]]:
    """The JAX model, compiled ahead of time so that compilation is timed separately."""
    import jax

    import und3rstand_jax as u3d

    backbone = u3d.load_backbone(folder, dtype=dtype)
    images = [jax.numpy.asarray(view) for view in made_views(views, size)]
    forward = jax.jit(lambda params, *views: backbone.module.apply({"params": params}, *views, capture=capture, head=head))
    start = time.perf_counter()
    program = forward.lower(backbone.params, *images).compile()
    details = {"compile_s": time.perf_counter() - start, "matmul": jax_matmul_rate(dtype), "device": jax.devices()[0].device_kind}
    return lambda: jax.block_until_ready(program(backbone.params, *images)), details


def jax_forward(case: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A jitted pass with all layers and heads, and random parameters made on the device, which need no checkpoint."""
    import json

    import jax
    import jax.numpy as jnp

    from tests.golden_cases import GOLDEN
    from tests.make_checkpoint import vggt_config
    from und3rstand_jax.model.families import backbone_module, backbone_shapes

    config = vggt_config(json.loads((GOLDEN / f"{case}.json").read_text())["config"])
    params: dict[str, Any] = {}
    for number, (path, shape) in enumerate(backbone_shapes(config).items()):
        *parents, leaf = path.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[leaf] = 0.02 * jax.random.normal(jax.random.key(number), shape, jnp.float32)
    module = backbone_module(config, dtype=jnp.dtype(dtype))
    return jax.jit(lambda params, *views: module.apply({"params": params}, *views, capture="all")), params


def made_views(views: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Views (1, H, W, 3) of noise in [-1, 1]."""
    return [np.random.default_rng(i).uniform(-1, 1, (1, *size, 3)).astype(np.float32) for i in range(views)]


def compare(options: argparse.Namespace) -> None:
    """Runs all sides in turn and prints the table."""
    import torch

    views, size = options.views, options.size
    dtypes = ("float32", "bfloat16") if torch.cuda.is_available() else ("float32",)
    with tempfile.TemporaryDirectory() as temporary:
        torch_folder, jax_folder = both_layouts(CASE, options.work or Path(temporary))
        sides = []
        for dtype in dtypes:
            sides.append(Worker(f"PyTorch, {dtype}: heads", build_torch, torch_folder, views, size, dtype))
            sides.append(Worker(f"JAX, {dtype}: heads", build_jax, jax_folder, views, size, dtype, "", HEADS))
            sides.append(Worker(f"JAX, {dtype}: 96 layers and heads", build_jax, jax_folder, views, size, dtype, "all", HEADS))
            sides.append(Worker(f"JAX, {dtype}: 96 layers", build_jax, jax_folder, views, size, dtype, "all", ()))
        for _ in range(options.rounds):
            for side in sides:
                side.run()
        for side in sides:
            side.finish()
    device = next(side.details["device"] for side in sides if "device" in side.details)
    print(f"VGGT-1B, {views} views of {size[1]}×{size[0]}, on {device} ({os.cpu_count()} CPU cores)")
    print(f"{options.rounds} rounds in turn; median [min, max]")
    rows = []
    for side in sides:
        torch_side = next(other for other in sides if other.name.startswith("PyTorch") and _dtype(other) == _dtype(side))
        seconds = f"{statistics.median(side.seconds):.2f} [{min(side.seconds):.2f}, {max(side.seconds):.2f}]"
        faster = statistics.median(theirs / ours for theirs, ours in zip(torch_side.seconds, side.seconds, strict=True))
        compiled = f"{side.details['compile_s']:.1f}" if "compile_s" in side.details else "–"
        rows.append(
            (side.name, seconds, f"{faster:.2f}×", compiled, f"{side.details['peak_gb']:.2f}", f"{side.details['matmul'] / 1e9:.0f}")
        )
    print(markdown_table(("side", "seconds", "over PyTorch", "compile s", "peak GB", "best product, GFLOP/s"), rows))


def _dtype(side: Worker) -> str:
    return "bfloat16" if "bfloat16" in side.name else "float32"
