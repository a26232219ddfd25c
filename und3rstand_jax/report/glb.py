"""Coloured points as glTF 2.0 in one binary file (.glb), which viewers, slides and browsers show.

The container has two chunks, JSON and numbers (glTF 2.0 specification, sections 3 and 4; ISO/IEC 12113). trimesh also writes it, but puts
the photos' 8-bit sRGB colours where the format has linear ones, so clouds look washed out; 8-bit linear colours would lose the shadows.
Here colours are linear, in float32: the format also has 16-bit integers, but trimesh itself reads these wrongly.
"""

import json
import struct

import numpy as np
from jaxtyping import Float, UInt8

FRAME = "glTF's axes: x right, y up, z backward, from view 1's camera at the origin, which looks along -z; the model's own unit of length"

_MAGIC, _VERSION = b"glTF", 2
_JSON, _BINARY = b"JSON", b"BIN\0"
_FLOAT, _POINTS, _ARRAY_BUFFER = 5126, 0, 34962

_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype("<f4")
"""8-bit sRGB (IEC 61966-2-1) -> linear, from 0 to 1."""


def glb_bytes(points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"], title: str) -> bytes:
    """A .glb file of coloured points.

    Args:
        points: finite, in view 1's camera frame: x right, y down, z forward. In the file, y and z change sign (`FRAME`), which rotates
            the scene by half a turn around x and leaves left and right as they are.
        colors: 8-bit sRGB.
        title: name of the cloud in viewers.
    """
    asset = {"version": "2.0", "generator": "und3rstand_jax", "extras": {"frame": FRAME}}
    if not len(points):  # a mesh needs at least one point, so the scene is empty
        return _container({"asset": asset, "scene": 0, "scenes": [{"name": title}]}, b"")
    # A component's product with -1 may be -0.0, which viewers treat as 0.
    places = (points * np.array([1, -1, -1], np.float32)).astype("<f4")
    buffers = [places.tobytes(), _LINEAR[colors].tobytes()]
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(data), "target": _ARRAY_BUFFER}
        for offset, data in zip((0, len(buffers[0])), buffers, strict=True)
    ]
    position = {"bufferView": 0, "componentType": _FLOAT, "count": len(points), "type": "VEC3"}
    position |= {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
    color = {"bufferView": 1, "componentType": _FLOAT, "count": len(points), "type": "VEC3"}
    content = {
        "asset": asset,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": title}],
        "meshes": [{"name": title, "primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS, "material": 0}]}],
        # Photos contain their light already.
        "extensionsUsed": ["KHR_materials_unlit"],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "accessors": [position, color],
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, buffers))}],
    }
    return _container(content, b"".join(buffers))


def _container(content: dict[str, object], binary: bytes) -> bytes:
    """Header and chunks, each padded to a multiple of four bytes: JSON with spaces, numbers with zeros."""
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    chunks = [(_JSON, text + b" " * (-len(text) % 4)), *([(_BINARY, binary + b"\0" * (-len(binary) % 4))] if binary else [])]
    body = b"".join(struct.pack("<I4s", len(data), kind) + data for kind, data in chunks)
    return struct.pack("<4sII", _MAGIC, _VERSION, 12 + len(body)) + body
