"""A set of views to analyse: photos, or a rendered scene with its ground truth."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL.Image import Image

from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.geometry.unprojection import unproject
from und3rstand_jax.model.images import load_images, to_uint8
from und3rstand_jax.model.preprocessing import Preprocessing
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import JsonObject, printable

SCENES_SEED = 0
"""The seed of held-out scenes. A training run with this seed, the default, validates on the same scenes."""

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The geometry of a rendered set.

    Attributes:
        views: all views' points in view 1's frame, in metres.
        poses: from every view's camera to camera 1, in metres; the first is the identity.
        intrinsics: of all cameras in pixels, pixel centres at integers.
    """

    views: tuple[ViewTruth, ...]
    poses: tuple[Float[np.ndarray, "4 4"], ...]
    intrinsics: tuple[Float[np.ndarray, "3 3"], ...]

    @property
    def pose(self) -> Float[np.ndarray, "4 4"]:
        """Camera 2 to camera 1."""
        return self.poses[1]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The views and what is known about them.

    Attributes:
        title: one line for headings.
        views: as the model takes them, (1, H, W, 3) in [-1, 1]; they may differ in size.
        truth: None for photos.
        provenance: where the views come from.
    """

    title: str
    views: tuple[Float[np.ndarray, "1 _H _W 3"], ...]
    truth: GroundTruth | None
    provenance: JsonObject

    @property
    def images(self) -> tuple[UInt8[np.ndarray, "_H _W 3"], ...]:
        """The views as 8-bit RGB."""
        return tuple(to_uint8(view[0]) for view in self.views)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Every view's size."""
        return tuple((view.shape[1], view.shape[2]) for view in self.views)


def photo_inputs(paths: tuple[Path, ...], photos: tuple[Image, ...], preprocessing: Preprocessing, side: int) -> Inputs:
    """Photos that are already open, resized as by `und3rstand_jax.model.images.load_images`.

    Args:
        paths: the photos' files, for the title and the provenance; nothing is read from them.
        photos: the open photos, in the same order.
        preprocessing: how they are resized and cropped.
        side: the size to bring them to, in pixels.

    Raises:
        ImageError: nothing is left of a photo at this size.
    """
    views = tuple(load_images(photos, preprocessing, side))
    images = [{"path": str(path), "height": view.shape[1], "width": view.shape[2]} for path, view in zip(paths, views, strict=True)]
    *first, last = (printable(path.name) for path in paths)
    title = f"{', '.join(first)} and {last}" if first else last
    return Inputs(title, views, None, {"images": images, "preprocessing": preprocessing})


def scene_inputs(number: int, data: str, size: Size, views: int = 2) -> Inputs:
    """A held-out synthetic scene, rendered, with its ground truth.

    Args:
        number: index of a held-out scene of seed 0, from 0.
        data: camera placement, in the syntax of the training option `--data`: `synthetic`,
            `synthetic:overlap=0.5-0.9,baseline=0.1-1`.
        size: of every view.
        views: how many cameras there are.

    Raises:
        OptionError: the number is out of range, or `data` does not describe synthetic scenes.
    """
    # Imported here, so that photos can be analysed without the libraries that read training data.
    from und3rstand_jax.data.example import model_input
    from und3rstand_jax.data.records import held_out_scenes
    from und3rstand_jax.data.specification import parse_data, scenes_of
    from und3rstand_jax.data.synthetic.render import RenderedSets

    scenes = scenes_of(parse_data((data,), views=views))
    if scenes is None:
        raise OptionError(f"--data {data!r}: --scene renders a scene; expected synthetic or synthetic:overlap=LOW-HIGH,baseline=LOW-HIGH")
    count = len(held_out_scenes())
    if not 0 <= number < count:
        raise OptionError(f"--scene {number}: expected the number of a held-out scene, 0 to {count - 1}")
    rendered = RenderedSets(scenes, SCENES_SEED, "val", number + 1, size).read(number)
    cameras = [np.asarray(view.cam2world, np.float64) for view in rendered]
    poses = (np.eye(4), *(np.linalg.inv(cameras[0]) @ camera for camera in cameras[1:]))
    intrinsics = tuple(np.asarray(view.intrinsics, np.float64) for view in rendered)
    points = tuple(view_truth(view.depth, *of_camera) for view, *of_camera in zip(rendered, intrinsics, poses, strict=True))
    provenance = {
        "scene": {"number": number, "seed": SCENES_SEED, "data": data, "cameras": dataclasses.asdict(scenes)},
        "images": [{"height": size[0], "width": size[1]}] * views,
    }
    images = tuple(np.asarray(model_input(view.image))[None] for view in rendered)
    return Inputs(f"held-out synthetic scene {number}", images, GroundTruth(points, poses, intrinsics), provenance)


def view_truth(depth: Float[np.ndarray, "H W"], intrinsics: Float[np.ndarray, "3 3"], pose: Float[np.ndarray, "4 4"]) -> ViewTruth:
    """A depth map as points.

    Args:
        depth: z along the optical axis; 0 or not finite where unknown.
        intrinsics: in pixels, pixel centres at integers.
        pose: from the camera to the frame of the points.

    Returns:
        The points, float32, 0 where the depth is unknown.
    """
    valid = np.isfinite(depth) & (depth > 0)
    in_camera = np.asarray(unproject(jnp.asarray(np.where(valid, depth, 0), jnp.float32), jnp.asarray(intrinsics, jnp.float32)), np.float64)
    points = in_camera @ pose[:3, :3].T + pose[:3, 3]
    return ViewTruth(np.where(valid[..., None], points, 0).astype(np.float32), valid)
