"""The checkpoint that a command uses if none is given: the pocket model, if it is available, so that a first call works without one.

It is available in a clone, as `pocket/` beside the package, or in the working directory. It is converted once, into the cache.
"""

import dataclasses
import logging
from pathlib import Path
from typing import TypeVar

from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.commands.sweep import SweepOptions
from und3rstand_jax.report.options import MatchOptions, ModelOptions, PointmapOptions
from und3rstand_jax.support.errors import OptionError

FOLDER, PROBES = "pocket", "probes"
_FILES = (f"{FOLDER}/config.json", f"{FOLDER}/model.safetensors", f"{FOLDER}/{PROBES}/config.json", f"{FOLDER}/{PROBES}/model.safetensors")

Options = TypeVar("Options", bound=ModelOptions | SweepOptions | StudyOptions)

_logger = logging.getLogger(__name__)


def with_checkpoint(options: Options, places: tuple[Path, ...] | None = None) -> Options:
    """The options, with the pocket model's converted checkpoint if they name none. Photos are then resized to its size.

    Args:
        options: the command's options.
        places: folders that may contain `pocket/`; by default the package's root and the working directory.

    Raises:
        OptionError: no checkpoint is given, and the pocket model is not available or of no use to the command.
        UserError: it cannot be converted or cached, or the results would be written into its folder.
    """
    if options.checkpoint:
        return options
    if isinstance(options, MatchOptions):
        raise OptionError(
            "match needs the descriptors of a MASt3R: give --checkpoint, a hub id such as "
            "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric or a folder; the pocket model of a clone is a DUSt3R, which has none"
        )
    places = (Path(__file__).parents[2], Path()) if places is None else places
    place = next((place for place in places if all((place / file).is_file() for file in _FILES)), None)
    if place is None:
        raise OptionError(
            f"no --checkpoint is given, and the pocket model, the {FOLDER}/ of a clone, was not found; give --checkpoint: a hub id such "
            "as jgaubil/und3rstand-dust3r-512-dpt, a folder or a file"
        )
    # Imported here because it brings in JAX, which --help does not need.
    from und3rstand_jax.checkpoint.format import read_checkpoint_info
    from und3rstand_jax.loading import converted_checkpoint
    from und3rstand_jax.support.results import check_apart

    pocket = place.resolve() / FOLDER
    check_apart(options.out, [pocket])
    folder = converted_checkpoint(pocket / PROBES, backbone=pocket)
    config = read_checkpoint_info(folder).backbone
    assert config is not None, "it is converted with its backbone"
    height, width = config.img_size
    _logger.info(
        "no --checkpoint is given: using the pocket model, a small DUSt3R for rendered rooms of %d×%d pixels, not the published one: %s, "
        "converted in %s",
        width,
        height,
        pocket,
        folder,
    )
    chosen = dataclasses.replace(options, checkpoint=str(folder))
    if isinstance(chosen, PointmapOptions) and chosen.size is None:
        chosen = dataclasses.replace(chosen, size=max(height, width))
    return chosen
