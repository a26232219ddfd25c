"""The checkpoint that a command runs: its model and probes, the layers that can be decoded, and its provenance."""

import logging
from collections.abc import Sequence
from pathlib import Path

from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.errors import CheckpointError, LayerError

# These have an entry for each tensor, which only the export back to PyTorch needs.
_TENSOR_LISTS = ("leaves", "unused", "second_names", "metadata", "config")

_logger = logging.getLogger(__name__)


def find_backbone(checkpoint: str, progress: bool = False) -> tuple[Path, CheckpointInfo, ModelConfig]:
    """A checkpoint's folder, converted first if necessary, its contents, and its backbone's config; no weights are read.

    Args:
        checkpoint: as for `load_model`.
        progress: whether a terminal shows progress bars of a download and a conversion.

    Raises:
        CheckpointError: it cannot be found, read or converted, or contains no backbone.
    """
    folder = converted_checkpoint(checkpoint, progress=progress)
    info = read_checkpoint_info(folder)
    if info.backbone is None:
        raise CheckpointError(f"{checkpoint} contains probes but no backbone; convert them again with --backbone")
    return folder, info, info.backbone


def load_model(checkpoint: str | Path, dtype: str, progress: bool = False) -> tuple[Backbone, Probes | None]:
    """The backbone of a checkpoint and its probes, if it has any.

    Args:
        checkpoint: a converted checkpoint, or whatever `load_backbone` converts on first use.
        dtype: compute dtype of encoder and decoder, float32 or bfloat16.
        progress: whether a terminal shows progress bars of a download and a conversion.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or contains no backbone.
    """
    folder = converted_checkpoint(checkpoint, progress=progress)
    if read_checkpoint_info(folder).probes is not None:
        return load_backbone_and_probe(folder, dtype=dtype)
    return load_backbone(folder, dtype=dtype), None


def choose_layers(config: ModelConfig, probed: Sequence[str] | None, selection: str | None) -> tuple[str, ...]:
    """The probed layers that a selection names, in network order; none if there are no probes.

    Args:
        config: the backbone's architecture.
        probed: ids of the layers with a probe; None without probes.
        selection: ids or patterns as in `und3rstand_jax.model.layer_ids`; None for every probed layer.

    Raises:
        LayerError: the selection is empty or names a layer without a probe.
        CheckpointError: the checkpoint has no probes to select from, or no head either, so that nothing gives pointmaps.
    """
    if probed is None:
        if selection is not None:
            raise CheckpointError(f"--layers {selection}: this checkpoint has no probes to decode layers with; omit --layers")
        if not config.heads:
            raise CheckpointError("this checkpoint has neither a head nor probes, so nothing gives pointmaps; convert it with its probes")
        return ()
    in_order = [layer for layer in config.layer_ids if layer in probed]
    layers = select_layers("*" if selection is None else selection, in_order)
    if not layers:
        raise LayerError(f"--layers {selection!r} selects nothing; give layer ids or patterns, such as decoder.*.mlp")
    return layers


def tell_what_is_missing(has_probes: bool, has_head: bool, layers: int) -> None:
    """Logs that a checkpoint without probes, or without a head, gives only the other's output; `layers` is the number decoded."""
    if not has_probes:
        _logger.info("this checkpoint has no probes: writing the output of the model's own head only")
    elif not has_head:
        _logger.info("this checkpoint has no head: writing the output of its probes only (%d layers)", layers)


def checkpoint_provenance(name: str, info: CheckpointInfo) -> dict[str, object]:
    """For backbone and probes: source, revision, sha256, how the architecture was found, and how the probes were trained."""
    parts = {
        part: {key: value for key, value in provenance.items() if key not in _TENSOR_LISTS} for part, provenance in info.provenance.items()
    }
    return {"path": name, **parts}
