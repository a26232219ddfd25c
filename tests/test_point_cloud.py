"""The PLY files: read back by trimesh, and their header as other programs see it."""

import numpy as np
import pytest
import trimesh

from und3rstand_jax.report.layer_files import write_point_cloud


def cloud(count):
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 256, (count, 3), dtype=np.uint8)


def test_points_and_colours_come_back_exactly(tmp_path):
    points, colors = cloud(1000)
    assert write_point_cloud(tmp_path / "a.ply", points, colors) == 0
    read = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.asarray(read.vertices, np.float32), points)
    np.testing.assert_array_equal(read.colors[:, :3], colors)


def test_points_that_are_not_finite_are_dropped_with_their_colours_and_counted(tmp_path):
    points, colors = cloud(6)
    points[1, 0], points[3, 2], points[4, 1] = np.nan, np.inf, -np.inf
    assert write_point_cloud(tmp_path / "a.ply", points, colors) == 3
    read = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.asarray(read.vertices, np.float32), points[[0, 2, 5]])
    np.testing.assert_array_equal(read.colors[:, :3], colors[[0, 2, 5]])


def test_a_cloud_without_a_finite_point_is_still_a_file(tmp_path):
    points, colors = cloud(2)
    assert write_point_cloud(tmp_path / "a.ply", points * np.nan, colors) == 2
    assert b"element vertex 0\n" in (tmp_path / "a.ply").read_bytes()


def test_the_header_says_frame_unit_and_title_in_one_line_each(tmp_path):
    write_point_cloud(tmp_path / "a.ply", *cloud(1), title="layer\nendé")
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode("ascii").splitlines()
    assert header[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment layer end?" in header
    assert any("x right, y down, z forward" in line and "model's own unit" in line for line in header)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_point_cloud(tmp_path / "none" / "a.ply", *cloud(1))
