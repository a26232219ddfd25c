"""The views that a command is asked for: photos, or a rendered scene."""

from pathlib import Path

from PIL.Image import Image

from und3rstand_jax.analysis.inputs import Inputs, photo_inputs, scene_inputs
from und3rstand_jax.loading import known_config
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.photos import open_photo
from und3rstand_jax.model.preprocessing import way_of
from und3rstand_jax.probes.config import ProbeConfig
from und3rstand_jax.report.options import PointmapOptions, ViewOptions
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.option_values import parse_image_size

PAIR = 2
"""Views: what is rendered where no other number is asked for, and what most of a report is about."""


def check_view_options(options: ViewOptions, only_pairs: bool = False, least: int = PAIR) -> None:
    """Refuses options that name no views, both photos and a scene, or a number of views that nothing takes.

    Args:
        options: of the command.
        only_pairs: whether the command is for two views.
        least: how many photos there are at least; whether a model takes one alone is `check_count`'s to say.

    Raises:
        OptionError: they do.
    """
    expected = "two images" if only_pairs else "two images or more" if least == PAIR else "one image or more"
    if options.scene is not None and options.images:
        raise OptionError(f"expected images or --scene {options.scene}, found both; omit one")
    if options.scene is None and options.views is not None:
        raise OptionError(f"--views {options.views} counts the cameras of a rendered scene; give --scene NUMBER, or omit --views")
    if options.scene is None and (len(options.images) < least or (only_pairs and len(options.images) != PAIR)):
        raise OptionError(f"expected {expected}, or --scene NUMBER; found {_images(options.images)}")
    if options.scene is None and options.data is not None:
        raise OptionError(f"--data {options.data} places the cameras of rendered scenes; give --scene NUMBER, or omit --data")
    if options.scene is not None and (view_count(options) < PAIR or (only_pairs and view_count(options) != PAIR)):
        most = "2" if only_pairs else "2 or more"
        raise OptionError(f"--views {options.views}: expected {most}")


def check_photos(images: tuple[Path, ...], known: ModelConfig | None) -> None:
    """Refuses a number of photos that no model takes, or not this one where it is known.

    Raises:
        OptionError: there are fewer, or more.
    """
    if not images:
        raise OptionError(f"expected one image or more; found {_images(images)}")
    if known is not None:
        known.check_view_count(len(images))


def view_count(options: ViewOptions) -> int:
    """How many views the options ask for."""
    return len(options.images) if options.scene is None else PAIR if options.views is None else options.views


def check_known_count(options: ViewOptions) -> None:
    """Refuses a number of views that the model does not take, where nothing has to be converted to know that.

    Raises:
        OptionError: it takes fewer or more.
        CheckpointError: a converted checkpoint cannot be read.
    """
    if (known := known_config(options.checkpoint)) is not None:
        known.check_view_count(view_count(options))


def check_count(count: int, config: ModelConfig, probes: ProbeConfig | None) -> None:
    """Refuses a number of views that this model, or its probes, do not take; asked before weights are read.

    Raises:
        OptionError: they take fewer or more.
    """
    config.check_view_count(count)
    if probes is not None and probes.views == "separate" and count > probes.view_count:
        raise OptionError(f"this checkpoint's probes have an MLP for each of {probes.view_count} views; found {count} views: give fewer")


def open_photos(options: PointmapOptions | ViewOptions, known: ModelConfig | None = None) -> tuple[Image, ...]:
    """The photos of the options; they are resized once the model is known.

    Args:
        options: of the command.
        known: the backbone that is to see them, where it is known already.

    Raises:
        ImageError: one cannot be read.
    """
    preprocessing = options.preprocessing or (None if known is None else known.preprocessing)
    background = None if preprocessing is None else way_of(preprocessing).background
    return tuple(open_photo(path, background) for path in options.images)


def photos_for(config: ModelConfig, options: PointmapOptions | ViewOptions, photos: tuple[Image, ...]) -> tuple[Image, ...]:
    """Photos that were opened before the model was known, as its preprocessing has them.

    They are opened again where that shows a background through transparent ones.
    """
    if options.preprocessing is None and way_of(config.preprocessing).background is not None:
        return open_photos(options, config)
    return photos


def make_inputs(options: ViewOptions, photos: tuple[Image, ...], config: ModelConfig) -> Inputs:
    """All views at the size asked for, by default the model's.

    Args:
        options: of the command, as `check_view_options` lets them pass.
        photos: of `open_photos`.
        config: the backbone that is to see them.

    Raises:
        OptionError: the scene or the size does not exist.
        ImageError: nothing is left of a photo at this size.
    """
    height, width = config.img_size if options.size is None else parse_image_size(options.size, config.patch_size, "--size")
    if options.scene is not None:
        data = "synthetic" if options.data is None else options.data
        return scene_inputs(options.scene, data, (height, width), view_count(options))
    if options.size is not None and height != width:
        raise OptionError(f"--size {options.size}: photos are resized to one side, in pixels, such as {max(height, width)}")
    photos = photos_for(config, options, photos)
    return photo_inputs(tuple(options.images), photos, options.preprocessing or config.preprocessing, max(height, width))


def _images(images: tuple[Path, ...]) -> str:
    return f"{len(images)} {'image' if len(images) == 1 else 'images'}"
