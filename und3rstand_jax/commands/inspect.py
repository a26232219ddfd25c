"""`python -m train inspect`: what a data set contains, and the usual mistakes in its geometry."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.commands.streams import show, show_json
from und3rstand_jax.support.option_kinds import Flag, Several, Whole


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Reads a sample of a data set's pairs, or of its larger sets of views, and reports on it.

    The report has counts, sizes, units, known depth, overlap, and mistakes in the geometry.
    """

    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(required; repeatable)")]
    """As in training: synthetic[:overlap=LOW-HIGH,baseline=LOW-HIGH], co3d:DIR, blendedmvs:DIR or pairs:DIR."""
    split: Literal["train", "val"] = "train"
    """Training pairs or held-out pairs."""
    views: Whole = 2
    """Views in a set: 2 for pairs."""
    pairs: Whole = 64
    """Number of pairs, or larger sets, to read."""
    resolution: Annotated[str, tyro.conf.arg(metavar="WxH")] = "512x384"
    """Training resolution in pixels. Scenes are rendered at it, and the report says which photos cannot be cropped to it."""
    seed: Whole = 0
    """Seed of rendered scenes."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print the report as one JSON document on stdout in place of text."""
    debug: Flag = False
    """Show the traceback of an error."""


def inspect(options: InspectOptions) -> None:
    """Prints a report on each source.

    Raises:
        OptionError: an option is out of its range.
        DataError: a source's folder or its list is unusable.
    """
    from und3rstand_jax.data.files.file_sets import open_sets
    from und3rstand_jax.data.inspect.describe import as_json, describe
    from und3rstand_jax.data.inspect.inspection import InspectedSets, inspect_sets
    from und3rstand_jax.data.specification import parse_data
    from und3rstand_jax.support.errors import OptionError
    from und3rstand_jax.support.option_values import check_seed, parse_image_size

    if options.pairs < 1:
        raise OptionError(f"--pairs must be at least 1; found {options.pairs}")
    seed = check_seed(options.seed)
    shape = parse_image_size(options.resolution, 16, "--resolution")
    found = []
    for spec in parse_data(options.data, views=options.views):
        source: InspectedSets
        if spec.scenes is not None:
            # Files need no JAX, and are read without it.
            from und3rstand_jax.data.synthetic.render import RenderedSets

            source = RenderedSets(spec.scenes, seed, options.split, options.pairs, shape)
        else:
            source = open_sets(spec.kind, spec.root or Path(), options.split, options.views)
        found.append(inspect_sets(source, options.pairs, shape, progress=True))
        if not options.json:
            show(describe(found[-1]))
    if options.json:
        show_json({"sources": [as_json(inspection) for inspection in found]})
