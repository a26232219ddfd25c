"""The .glb files: the container as the specification has it, and points and colours as trimesh reads them."""

import json
import struct

import numpy as np
import pytest
import trimesh

from tests.test_point_cloud import cloud
from und3rstand_jax.report.layer_files import write_point_cloud


def chunks(data):
    """The JSON of a .glb file and its binary chunk; all lengths are checked."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    found, place = [], 12
    while place < len(data):
        size, kind = struct.unpack_from("<I4s", data, place)
        assert size % 4 == 0
        found.append((kind, data[place + 8 : place + 8 + size]))
        place += 8 + size
    assert place == len(data) and [kind for kind, _ in found] in ([b"JSON", b"BIN\0"], [b"JSON"])
    return json.loads(found[0][1]), found[1][1] if len(found) > 1 else b""


def arrays(data):
    """Places and linear colours."""
    content, binary = chunks(data)
    views = [binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]] for view in content["bufferViews"]]
    return tuple(np.frombuffer(view, "<f4").reshape(-1, 3) for view in views)


def test_trimesh_reads_points_and_colours(tmp_path):
    points, colors = cloud(1000)
    assert write_point_cloud(tmp_path / "a.glb", points, colors, title="decoder.0.mlp") == 0
    scene = trimesh.load(tmp_path / "a.glb")
    ((name, read),) = scene.geometry.items()
    assert name == "decoder.0.mlp" and isinstance(read, trimesh.PointCloud)
    np.testing.assert_array_equal(np.asarray(read.vertices, np.float32), points * [1, -1, -1])
    _, exact = arrays((tmp_path / "a.glb").read_bytes())
    np.testing.assert_allclose(read.colors[:, :3], 255 * exact, atol=1)


def test_axes_are_glTFs_and_left_stays_left():
    """A point right of, below and in front of the camera is right of, below and in front of glTF's, which looks along -z with y up."""
    places, _ = arrays(written(np.float32([[1, 2, 3]]), np.uint8([[0, 0, 0]])))
    assert places.tolist() == [[1, -2, -3]]
    turn = arrays(written(np.eye(3, dtype=np.float32), np.zeros((3, 3), np.uint8)))[0]
    assert np.linalg.det(turn) == pytest.approx(1)  # a turn, no mirror


def written(points, colors):
    from und3rstand_jax.report.glb import glb_bytes

    return glb_bytes(points, colors, "cloud")


def test_colours_are_linear_and_keep_the_shadows():
    colors = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    _, linear = arrays(written(np.zeros((256, 3), np.float32), colors))
    assert (linear[0] == 0).all() and (linear[255] == 1).all()
    assert (np.diff(linear[:, 0]) > 0).all()  # in 8 bits, the darkest would be one
    # IEC 61966-2-1: sRGB's middle grey, 188, has half the light.
    assert linear[188, 0] == pytest.approx(0.5029, abs=1e-4)


def test_the_content_names_its_arrays_as_the_format_wants_them():
    points, colors = cloud(10)
    content, binary = chunks(written(points, colors))
    position, color = content["accessors"]
    assert content["asset"]["version"] == "2.0" and "x right, y up, z backward" in content["asset"]["extras"]["frame"]
    (primitive,) = content["meshes"][0]["primitives"]
    assert primitive["mode"] == 0 and primitive["attributes"] == {"POSITION": 0, "COLOR_0": 1}
    assert (position["type"], position["componentType"], position["count"]) == ("VEC3", 5126, 10)
    assert (color["type"], color["componentType"], color["count"]) == ("VEC3", 5126, 10)
    places, _ = arrays(written(points, colors))
    assert position["min"] == places.min(axis=0).tolist() and position["max"] == places.max(axis=0).tolist()
    assert content["buffers"] == [{"byteLength": 10 * (12 + 12)}] and len(binary) == 240
    assert all(view["byteOffset"] % 4 == 0 for view in content["bufferViews"])


def test_points_that_are_not_finite_are_left_out_and_counted(tmp_path):
    points, colors = cloud(5)
    points[2, 1] = np.nan
    assert write_point_cloud(tmp_path / "a.glb", points, colors) == 1
    places, _ = arrays((tmp_path / "a.glb").read_bytes())
    np.testing.assert_array_equal(places, points[[0, 1, 3, 4]] * np.float32([1, -1, -1]))


def test_without_a_point_it_is_still_a_scene(tmp_path):
    points, colors = cloud(2)
    assert write_point_cloud(tmp_path / "a.glb", points * np.nan, colors) == 2
    content, binary = chunks((tmp_path / "a.glb").read_bytes())
    assert content["scenes"] and "meshes" not in content and not binary
    assert len(trimesh.load(tmp_path / "a.glb").geometry) == 0
