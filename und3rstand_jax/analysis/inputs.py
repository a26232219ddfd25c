"""What a report looks at: two photos, or a rendered scene of which everything is known."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL.Image import Image

from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.model.images import Preprocessing, load_image, to_uint8
from und3rstand_jax.support.errors import UserError

SCENES_SEED = 0  # a training run with this seed, which is its default, validates on the same scenes


Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Both views and what is known of them.

    Attributes:
        title: what is looked at, in a line.
        views: as the model takes them, (1, H, W, 3) in [-1, 1]; they may differ in size.
        truth: both views' true points in view 1's frame, None for photos.
        true_pose: camera 2 to camera 1, in the truth's unit, None for photos.
        intrinsics: of both cameras in pixels, pixel centres at integers, None for photos.
        facts: where the views come from, as JSON.
    """

    title: str
    views: tuple[Float[np.ndarray, "1 H W 3"], Float[np.ndarray, "1 H W 3"]]
    truth: tuple[ViewTruth, ViewTruth] | None
    true_pose: Float[np.ndarray, "4 4"] | None
    intrinsics: tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]] | None
    facts: Mapping[str, Any]

    @property
    def images(self) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]:
        """Both views' pixels."""
        return to_uint8(self.views[0][0]), to_uint8(self.views[1][0])

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Of both views."""
        return (self.views[0].shape[1], self.views[0].shape[2]), (self.views[1].shape[1], self.views[1].shape[2])


def photo_inputs(paths: tuple[Path, Path], photos: tuple[Image, Image], preprocessing: Preprocessing, side: int) -> Inputs:
    """Two open photos, brought to size as `und3rstand_jax.model.images.load_image` does; `paths` is what they are called.

    Raises:
        UserError: a photo leaves nothing at this size.
    """
    one, two = (load_image(photo, preprocessing, side) for photo in photos)
    images = [{"path": str(path), "height": view.shape[1], "width": view.shape[2]} for path, view in zip(paths, (one, two), strict=True)]
    facts = {"images": images, "preprocessing": preprocessing}
    return Inputs(" and ".join(map(_shown_name, paths)), (one, two), None, None, None, facts)


def _shown_name(file: Path) -> str:
    """A file's name, in which what no figure or page can show is written out: bytes that are not UTF-8, ends of lines."""
    name = os.fsencode(file.name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def scene_inputs(number: int, data: str, size: Size) -> Inputs:
    """A held-out synthetic scene, rendered, with its ground truth in metres.

    Args:
        number: counts the held-out scenes of seed 0, from 0.
        data: how cameras are placed, as `--data` of training says it: `synthetic`, `synthetic:overlap=0.5-0.9,baseline=0.1-1`.
        size: of both views.

    Raises:
        UserError: there is no scene of this number, or `data` does not say how scenes are rendered.
    """
    from und3rstand_jax.data.example import model_input
    from und3rstand_jax.data.inspect.inspection import RenderedPairs
    from und3rstand_jax.data.records import held_out_scenes
    from und3rstand_jax.data.specification import parse_data, scenes_of

    scenes = scenes_of(parse_data((data,)))
    if scenes is None:
        raise UserError(f"--data {data!r}: a scene is rendered; expected synthetic or synthetic:overlap=LOW-HIGH,baseline=LOW-HIGH")
    count = len(held_out_scenes())
    if not 0 <= number < count:
        raise UserError(f"--scene {number}: expected the number of a held-out scene, 0 to {count - 1}")
    pair = RenderedPairs(scenes, SCENES_SEED, "val", number + 1, size).read(number)
    cameras = [np.asarray(view.cam2world, np.float64) for view in pair]
    intrinsics = np.asarray(pair.view1.intrinsics, np.float64), np.asarray(pair.view2.intrinsics, np.float64)
    true_pose = np.linalg.inv(cameras[0]) @ cameras[1]
    truth = (
        view_truth(pair.view1.depth, intrinsics[0], np.eye(4)),
        view_truth(pair.view2.depth, intrinsics[1], true_pose),
    )
    facts = {
        "scene": {"number": number, "seed": SCENES_SEED, "data": data, "cameras": dataclasses.asdict(scenes)},
        "images": [{"height": size[0], "width": size[1]}] * 2,
    }
    one, two = (np.asarray(model_input(view.image))[None] for view in pair)
    return Inputs(f"held-out synthetic scene {number}", (one, two), truth, true_pose, intrinsics, facts)


def view_truth(depth: Float[np.ndarray, "H W"], intrinsics: Float[np.ndarray, "3 3"], pose: Float[np.ndarray, "4 4"]) -> ViewTruth:
    """A depth map (z; 0 or not finite where unknown) as points in the frame that `pose` takes the camera to; 0 where unknown."""
    from und3rstand_jax.data.example import unproject

    valid = np.isfinite(depth) & (depth > 0)
    in_camera = np.asarray(unproject(jnp.asarray(np.where(valid, depth, 0)), jnp.asarray(intrinsics, jnp.float32)), np.float64)
    points = in_camera @ pose[:3, :3].T + pose[:3, 3]
    return ViewTruth(np.where(valid[..., None], points, 0).astype(np.float32), valid)
