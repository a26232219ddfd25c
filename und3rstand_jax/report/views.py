"""The views that a command runs on: photos, or a rendered scene."""

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
"""The default number of rendered views, and the number that most of a report is about."""


def check_view_options(options: ViewOptions, only_pairs: bool = False, least: int = PAIR) -> None:
    """Refuses options that name no views, or both photos and a scene, or a number of views that no model takes.

    Args:
        options: the command's options.
        only_pairs: whether the command is for two views only.
        least: minimum number of photos; `check_count` decides whether a model takes a single one.

    Raises:
        OptionError: the options are refused.
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
    """Refuses a number of photos that no model takes or, if the model is known, that it does not take.

    Raises:
        OptionError: the number is refused.
    """
    if not images:
        raise OptionError(f"expected one image or more; found {_images(images)}")
    if known is not None:
        known.check_view_count(len(images))


def view_count(options: ViewOptions) -> int:
    """The number of views that the options ask for."""
    return len(options.images) if options.scene is None else PAIR if options.views is None else options.views


def check_known_count(options: ViewOptions) -> None:
    """Refuses a number of views that the model does not take, if that is known without a conversion.

    Raises:
        OptionError: the model takes fewer or more.
        CheckpointError: a converted checkpoint cannot be read.
    """
    if (known := known_config(options.checkpoint)) is not None:
        known.check_view_count(view_count(options))


def check_count(count: int, config: ModelConfig, probes: ProbeConfig | None) -> None:
    """Refuses a number of views that this model or its probes do not take; call it before weights are read.

    Raises:
        OptionError: they take fewer or more.
    """
    config.check_view_count(count)
    if probes is not None and probes.views == "separate" and count > probes.view_count:
        raise OptionError(f"this checkpoint's probes have an MLP for each of {probes.view_count} views; found {count} views: give fewer")


def open_photos(options: PointmapOptions | ViewOptions, known: ModelConfig | None = None) -> tuple[Image, ...]:
    """Opens the photos that the options name; they are resized once the model is known.

    Args:
        options: the command's options.
        known: config of the backbone that will read them, if it is already known.

    Raises:
        ImageError: one cannot be read.
    """
    preprocessing = options.preprocessing or (None if known is None else known.preprocessing)
    background = None if preprocessing is None else way_of(preprocessing).background
    return tuple(open_photo(path, background) for path in options.images)


def photos_for(config: ModelConfig, options: PointmapOptions | ViewOptions, photos: tuple[Image, ...]) -> tuple[Image, ...]:
    """Photos that were opened before the model was known, as its preprocessing needs them.

    They are opened again if that preprocessing puts transparent photos on a background.
    """
    if options.preprocessing is None and way_of(config.preprocessing).background is not None:
        return open_photos(options, config)
    return photos


def make_inputs(options: ViewOptions, photos: tuple[Image, ...], config: ModelConfig) -> Inputs:
    """All views at the requested size, by default the model's.

    Args:
        options: the command's options, accepted by `check_view_options`.
        photos: the result of `open_photos`.
        config: config of the backbone that will read them.

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
