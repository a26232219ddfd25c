"""Deterministic weights for the golden cases: the same array for the same (seed, name, shape) on any machine.

The golden outputs beside this file were computed by the original PyTorch DUSt3R with every
tensor of its state dict replaced by `tensor(name, shape, seed)`. Nothing needs to be stored or
downloaded to reproduce its inputs: list the names and shapes, call `tensor`, and write a checkpoint.
"""

import re
import zlib

import numpy as np


def _rng(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, zlib.crc32(name.encode())], np.uint64)))


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 array of `shape` for the PyTorch state-dict entry `name`.

    Norm weights lie near 1 and biases near 0; matrices and kernels are scaled by 1/sqrt(fan_in), with a larger gain
    for queries and keys (so attention is far from uniform) and a smaller one for the last layer of a head
    (so the exponential depth and confidence stay finite).
    """
    name = re.sub(r"scratch\.layer_rn\.(\d)\.", lambda m: f"scratch.layer{int(m[1]) + 1}_rn.", name)  # two names, one tensor
    n = _rng(name, seed).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        is_norm_scale = name.endswith(".weight")
        return (1 + 0.1 * n if is_norm_scale else 0.05 * n).astype(np.float32)
    is_transposed_conv = re.search(r"act_postprocess\.[01]\.1\.weight$", name) is not None
    fan_in = shape[0] if is_transposed_conv else int(np.prod(shape[1:]))
    gain = 1.0
    if re.search(r"\.(qkv|projq|projk)\.weight$", name):
        gain = 2.0
    elif re.search(r"resConfUnit\d\.conv\d\.weight$|downstream_head\d\.proj\.weight$", name):
        gain = 0.5
    elif name.endswith("dpt.head.4.weight"):
        gain = 0.2
    return (gain / np.sqrt(fan_in) * n).astype(np.float32)


def image(name: str, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 RGB image (height, width, 3): smooth blobs plus noise, so that neither tokens nor pixels are alike."""
    rng = _rng(name, seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for _ in range(6):
        cy, cx, s = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(4, 0.5 * max(height, width))
        out += rng.uniform(-1, 1, 3) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s * s))[..., None]
    out = 127.5 + 70 * out + rng.normal(0, 12, out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
