"""The edits given on a command line: reading them, describing them in words, and the layers that they can change."""

from pathlib import Path

import numpy as np

from und3rstand_jax.model.affine import SiteEdits, neutral_like
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.edit_files import read_edits
from und3rstand_jax.model.edits import PLACE_FIELDS, Edit, Edits, knock_out, listed_places, skip
from und3rstand_jax.report.options import EditOptions
from und3rstand_jax.support.errors import OptionError


def given_edits(options: EditOptions) -> Edits:
    """All edits of the options: those of the file, then the knock-outs, then the skips.

    Raises:
        OptionError: there is none, or arrays are given without the edits that name them.
        EditError, LayerError: as raised by `und3rstand_jax.model.edit_files.read_edits`.
    """
    if options.edits is None and options.edit_arrays is not None:
        raise OptionError(f"--edit-arrays {options.edit_arrays} contains arrays that --edits names; give --edits FILE, or omit it")
    edits = Edits() if options.edits is None else read_edits(options.edits, options.edit_arrays)
    for site in options.knock_out:
        edits += knock_out(site)
    for step in options.skip:
        edits += skip(step)
    if not edits:
        found = "no option" if options.edits is None else f"an empty list in {options.edits}"
        raise OptionError(f"expected at least one edit by --edits FILE, --knock-out SITE or --skip STEP; found {found}")
    return edits


def edit_files(options: EditOptions) -> list[Path]:
    """The files from which edits are read."""
    named = [file for file in (options.edits, options.edit_arrays) if file is not None]
    beside = [] if options.edits is None or options.edit_arrays is not None else [options.edits.with_suffix(".npz")]
    return [*named, *beside]


def changeable(layers: tuple[str, ...], first: str, config: ModelConfig) -> tuple[str, ...]:
    """The layers among these that are not before the first edited one."""
    order = config.layer_ids
    return tuple(layer for layer in layers if order.index(layer) >= order.index(first))


def neutral(edits: SiteEdits) -> SiteEdits:
    """Edits of the same sites that leave all values unchanged, and run the same compiled program."""

    return {site: tuple(affine and neutral_like(affine) for affine in views) for site, views in edits.items()}


def edit_text(edit: Edit) -> str:
    """An edit in a line: `decoder.4.cross_attn.heads@2, heads [0]: x ← 0`, `decoder.2.mlp, tokens [5, 6]: x ← x + array (128,)`."""
    site = edit.site if edit.one_view is None else f"{edit.site}@{edit.one_view}"
    chosen = [(name, getattr(edit, name)) for name in PLACE_FIELDS]
    places = "".join(f", {name} {listed_places(places)}" for name, places in chosen if places is not None)
    scale, shift = map(np.asarray, (edit.scale, edit.shift))
    is_scaled, is_shifted = (value.ndim > 0 or value != 0 for value in (scale, shift))
    terms = ["x" if scale.ndim == 0 and scale == 1 else f"{_number(scale)}·x"] if is_scaled else []
    terms += [_number(shift)] if is_shifted or not is_scaled else []
    return f"{site}{places}: x ← {' + '.join(terms)}"


def _number(value: np.ndarray) -> str:
    return f"array {value.shape}" if value.ndim else f"{float(value):.4g}".replace("inf", "∞").replace("-", "−")
