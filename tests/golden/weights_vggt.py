"""Deterministic weights for the VGGT golden cases: the same array for the same (seed, name, shape) on any machine.

Same generator and same `image` as `weights.py` (the DUSt3R cases); only the rule per kind of tensor is VGGT's own.
The golden outputs beside this file were computed by the original PyTorch VGGT with every tensor of its state dict
replaced by `tensor(name, shape, seed)`.
"""

import re
import zlib

import numpy as np


def _rng(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, zlib.crc32(name.encode())], np.uint64)))


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 array of `shape` for the PyTorch state-dict entry `name`; n is standard normal.

    learned tokens and pos_embed   0.5 n          (as large as the patch embedding, so that a wrong place is seen)
    LayerScale gamma               0.3 + 0.1 n    (every branch counts, every channel differs, 72 blocks stay finite)
    q_norm / k_norm scale          1.5 + 0.15 n   (attention far from uniform although q and k are normalised)
    other norm scales              1 + 0.1 n
    biases                         0.05 n         (last bias of the camera head: + POSE_BIAS, so that fields of view end up positive)
    matrices and kernels           gain / sqrt(fan_in) n
    gain 2 for q, k, v where q and k are not normalised; 0.5 in the residual units of the DPT heads; 0.3 for the last layer
    of the camera head.
    """
    n = _rng(name, seed).standard_normal(shape, dtype=np.float32)
    if re.search(
        r"(^|\.)(cls_token|mask_token|register_tokens|camera_token|register_token|pos_embed|empty_pose_tokens|query_ref_token)$", name
    ):
        return (0.5 * n).astype(np.float32)
    if name.endswith(".gamma"):
        return (0.3 + 0.1 * n).astype(np.float32)
    if re.search(r"\.[qk]_norm\.weight$", name):
        return (1.5 + 0.15 * n).astype(np.float32)
    if len(shape) == 1:
        if name.endswith(".weight"):
            return (1 + 0.1 * n).astype(np.float32)
        offset = POSE_BIAS if name.endswith("pose_branch.fc2.bias") else 0
        return (0.05 * n + offset).astype(np.float32)
    is_transposed_conv = re.search(r"resize_layers\.[01]\.weight$", name) is not None  # stored (in, out, k, k), stride = k
    fan_in = shape[0] if is_transposed_conv else int(np.prod(shape[1:]))
    gain = 1.0
    if re.search(r"(patch_embed\.blocks|camera_head\.trunk)\.\d+\.attn\.qkv\.weight$", name):
        gain = 2.0
    elif re.search(r"resConfUnit\d\.conv\d\.weight$", name):
        gain = 0.5
    elif name.endswith("pose_branch.fc2.weight"):
        gain = 0.3
    return (gain / np.sqrt(fan_in) * n).astype(np.float32)


POSE_BIAS = np.array([0, 0, 0, 0, 0, 0, 0.2, 0.25, 0.25], np.float32)  # translation, quaternion (scalar last), fields of view


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
