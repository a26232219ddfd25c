"""Time of a full-size forward pass, PyTorch against JAX: `python -m benchmarks.forward`.

The 512 dpt model on one pair of 512×512 images. PyTorch is the reference of the tests, with plain attention as in the original
and with scaled_dot_product_attention. Both PyTorch and JAX return all 36 decoder layers, and JAX also runs with only its heads and
with only the layers. Sides run in turn, each in its own process. On a GPU, the same runs in float32 and bfloat16, and also with
cuDNN's attention. `--model vggt` compares VGGT-1B instead (`benchmarks.forward_vggt`).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.forward_vggt import compare
from benchmarks.matmul_rate import jax_matmul_rate, torch_matmul_rate
from benchmarks.workers import Worker, both_layouts
from und3rstand_jax.support.text import markdown_table

SIZE = 512
LAYERS = "all"


def build_torch(folder: Path, attention: str, dtype: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The PyTorch reference on this page's pair, and its ceiling."""
    import torch

    run = torch_forward(folder, attention, dtype, made_views(1, (SIZE, SIZE)))
    return run, {"matmul": torch_matmul_rate("cuda" if torch.cuda.is_available() else "cpu", dtype)}


def torch_forward(folder: Path, attention: str, dtype: str, images: Sequence[np.ndarray]) -> Callable[[], None]:
    """The PyTorch reference, recording every layer, on both views (B, H, W, 3)."""
    import json

    import torch
    from safetensors.torch import load_file

    from tests.torch_reference import load_reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((folder / "config.json").read_text())
    model = load_reference(config, load_file(folder / "model.safetensors"), attention=attention).to(device).eval()
    if dtype == "bfloat16":
        model.bfloat16()
        model.downstream_head1.float()
        model.downstream_head2.float()
    views = [torch.from_numpy(view).permute(0, 3, 1, 2).to(device, getattr(torch, dtype)) for view in images]

    def run() -> None:
        with torch.inference_mode():
            model(*views)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def build_jax(folder: Path, attention: str, dtype: str, capture: str, head: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """The JAX model, compiled ahead of time so that compilation is timed separately."""
    import jax

    import und3rstand_jax as u3d

    backbone = u3d.load_backbone(folder, dtype=dtype, attention=attention)
    views = [jax.numpy.asarray(view) for view in made_views(1, (SIZE, SIZE))]
    forward = jax.jit(lambda params, a, b: backbone.module.apply({"params": params}, a, b, capture=capture, head=head))
    start = time.perf_counter()
    program = forward.lower(backbone.params, *views).compile()
    details = {"compile_s": time.perf_counter() - start, "matmul": jax_matmul_rate(dtype), "device": jax.devices()[0].device_kind}
    return lambda: jax.block_until_ready(program(backbone.params, *views)), details


def model_flops(case: str = "full_512_dpt", shape: tuple[int, int] = (SIZE, SIZE)) -> int:
    """Flops of products and convolutions in one forward pass of a pair of views, counted by PyTorch without a device."""
    import json

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.make_checkpoint import GOLDEN
    from tests.torch_reference import DUSt3RReference

    with torch.device("meta"):
        model = DUSt3RReference(json.loads((GOLDEN / f"{case}.json").read_text())["config"])
        view = torch.zeros(1, 3, *shape)
        with FlopCounterMode(display=False) as counter:
            model(view, view)
    return counter.get_total_flops()


def made_views(batch: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Both views (batch, H, W, 3) of noise in [-1, 1]."""
    return [np.random.default_rng(i).uniform(-1, 1, (batch, *shape, 3)).astype(np.float32) for i in (1, 2)]


def _sides(torch_folder: Path, jax_folder: Path, gpu: bool) -> list[Worker]:
    dtypes = ("float32", "bfloat16") if gpu else ("float32",)
    sides = []
    for dtype in dtypes:
        for attention in ("plain", "sdpa"):
            sides.append(Worker(f"PyTorch, {attention} attention, {dtype}", build_torch, torch_folder, attention, dtype))
        # On a GPU, "auto" is cuDNN's attention in bfloat16.
        for attention in ("auto", "xla") if dtype == "bfloat16" else ("auto",):
            label = f"JAX, {attention} attention, {dtype}" if gpu else "JAX"
            sides.append(Worker(f"{label}: 36 layers and heads", build_jax, jax_folder, attention, dtype, LAYERS, True))
            sides.append(Worker(f"{label}: 36 layers", build_jax, jax_folder, attention, dtype, LAYERS, False))
            sides.append(Worker(f"{label}: heads", build_jax, jax_folder, attention, dtype, "", True))
    return sides


def _sides_by_dtype(jax_folder: Path) -> list[Worker]:
    """JAX with and without heads, each in bfloat16 right after float32."""
    return [
        Worker(f"{what}, {dtype}", build_jax, jax_folder, "auto", dtype, LAYERS, head)
        for what, head in (("36 layers and heads", True), ("36 layers", False))
        for dtype in ("float32", "bfloat16")
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoints in, 4.6 GB, for vggt 9.5 (default: a temporary one)")
    parser.add_argument("--bfloat16", action="store_true", help="instead, JAX in bfloat16 against itself in float32; needs no PyTorch")
    parser.add_argument("--model", choices=("dust3r", "vggt"), default="dust3r", help="which model (default: dust3r)")
    parser.add_argument("--views", type=int, default=2, help="views of VGGT (default: 2)")
    parser.add_argument("--size", type=int, nargs=2, default=(392, 518), metavar=("HEIGHT", "WIDTH"), help="for VGGT (default: 392 518)")
    args = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
    if args.model == "vggt":
        if args.bfloat16:
            parser.error("--bfloat16 is only for dust3r; vggt runs in both if there is a GPU")
        return compare(args)
    with tempfile.TemporaryDirectory() as temporary:
        folders = both_layouts("full_512_dpt", args.work or Path(temporary))
        if args.bfloat16:
            sides = _sides_by_dtype(folders[1])
        else:
            import torch

            sides = _sides(*folders, gpu=torch.cuda.is_available())
        for _ in range(args.rounds):
            for side in sides:
                side.run()
        for side in sides:
            side.finish()
    if args.bfloat16:
        _print_by_dtype(sides)
    else:
        _print(sides, model_flops())


def _print(sides: list[Worker], flops: int) -> None:
    best = {dtype: max(s.details["matmul"] for s in sides if _dtype(s) == dtype) for dtype in dict.fromkeys(map(_dtype, sides))}
    device = next(side.details["device"] for side in sides if "device" in side.details)
    print(f"512 dpt, {SIZE}×{SIZE}, batch 1, on {device} ({os.cpu_count()} CPU cores)")
    print(f"{len(sides[0].seconds)} rounds in turn; median [min, max]")
    print(f"one forward pass with heads: {flops / 1e12:.2f} TFLOP")
    print("".join(f"best matrix product in {dtype}: {rate / 1e9:.0f} GFLOP/s\n" for dtype, rate in best.items()))
    head = ("side", "seconds", "over plain PyTorch", "over PyTorch sdpa", "compile s", "peak GB", "of the matrix-product rate")
    rows = []
    for side in sides:
        plain, sdpa = (next(s for s in sides if s.name == f"PyTorch, {kind} attention, {_dtype(side)}") for kind in ("plain", "sdpa"))
        median = statistics.median(side.seconds)
        runs_heads = not side.name.endswith("36 layers")
        rows.append(
            (
                side.name,
                f"{median:.2f} [{min(side.seconds):.2f}, {max(side.seconds):.2f}]",
                _faster(plain, side),
                _faster(sdpa, side),
                f"{side.details['compile_s']:.1f}" if "compile_s" in side.details else "–",
                f"{side.details['peak_gb']:.2f}",
                f"{flops / median / best[_dtype(side)]:.0%}" if runs_heads else "–",
            )
        )
    print(markdown_table(head, rows))


def _print_by_dtype(sides: list[Worker]) -> None:
    import jax

    print(f"512 dpt, {SIZE}×{SIZE}, batch 1, on {sides[0].details['device']} ({os.cpu_count()} CPU cores), jax {jax.__version__}")
    print(f"{len(sides[0].seconds)} rounds in turn; median [min, max]")
    rows = []
    for single, half in zip(sides[::2], sides[1::2], strict=True):
        for side in (single, half):
            seconds = f"{statistics.median(side.seconds):.2f} [{min(side.seconds):.2f}, {max(side.seconds):.2f}]"
            rows.append(
                (side.name, seconds, _faster(single, side), f"{side.details['matmul'] / 1e9:.0f}", f"{side.details['peak_gb']:.2f}")
            )
    print(markdown_table(("side", "seconds", "over float32", "best product, GFLOP/s", "peak GB"), rows))


def _dtype(side: Worker) -> str:
    return "bfloat16" if "bfloat16" in side.name else "float32"


def _faster(other: Worker, side: Worker) -> str:
    """How many times as fast `side` is: the median of the ratios round by round."""
    return f"{statistics.median(o / s for o, s in zip(other.seconds, side.seconds, strict=True)):.2f}×"


if __name__ == "__main__":
    main()
