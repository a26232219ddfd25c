"""The pair of views that a command is asked for: two photos, or a rendered scene."""

from PIL.Image import Image

from und3rstand_jax.analysis.inputs import Inputs, photo_inputs, scene_inputs
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.report.options import ViewOptions
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_values import parse_image_size


def check_view_options(options: ViewOptions) -> None:
    """Refuses options that name no pair of views, or two.

    Raises:
        OptionError: they do.
    """
    if options.scene is None and len(options.images) != 2:
        raise OptionError(f"expected two images, or --scene NUMBER; found {len(options.images)} images")
    if options.scene is not None and options.images:
        raise OptionError(f"expected two images or --scene {options.scene}, found both; omit one")
    if options.scene is None and options.data is not None:
        raise OptionError(f"--data {options.data} places the cameras of rendered scenes; give --scene NUMBER, or omit --data")


def make_inputs(options: ViewOptions, photos: tuple[Image, ...], config: BackboneConfig) -> Inputs:
    """Both views at the size asked for, by default the model's.

    Args:
        options: of the command, as `check_view_options` lets them pass.
        photos: those of `options.images`, opened.
        config: the backbone that is to see them.

    Raises:
        OptionError: the scene or the size does not exist.
        ImageError: nothing is left of a photo at this size.
    """
    height, width = config.img_size if options.size is None else parse_image_size(options.size, config.patch_size, "--size")
    if options.scene is not None:
        return scene_inputs(options.scene, "synthetic" if options.data is None else options.data, (height, width))
    if options.size is not None and height != width:
        raise OptionError(f"--size {options.size}: photos are resized to one side, in pixels, such as {max(height, width)}")
    return photo_inputs(tuple(options.images), tuple(photos), options.preprocessing, max(height, width))
