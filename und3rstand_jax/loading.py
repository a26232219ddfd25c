"""Loads backbones and probes from converted checkpoints, and converts a source on first use."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from und3rstand_jax.checkpoint.format import JAX, CheckpointInfo, is_checkpoint, read_checkpoint_info
from und3rstand_jax.checkpoint.parts import DamageError, read_part
from und3rstand_jax.checkpoint.trees import Tree
from und3rstand_jax.convert.cache import CACHE_VARIABLE, cache_folder, converted_checkpoint, discard_damaged, neither_layout
from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.backbone import Backbone, ProbedLayers
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import backbone_module, published_config
from und3rstand_jax.probes.probes import PointmapProbes, Probes
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.files import in_home

__all__ = [
    "CACHE_VARIABLE",
    "cache_folder",
    "converted_checkpoint",
    "known_config",
    "load_backbone",
    "load_backbone_and_probe",
    "stored_dtype",
]

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Conversion(TypedDict, total=False):
    """How to fetch and convert a source that is not converted yet, as in the converter's options."""

    cache: str | Path | None
    revision: str | None
    token: str | None
    hub_cache: str | None
    offline: bool
    backbone: str | Path | None
    progress: bool


def load_backbone(
    source: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionImplementation = "auto",
    **conversion: Unpack[Conversion],
) -> Backbone:
    """A backbone, ready to run.

    Args:
        source: a converted checkpoint, or any source that `python -m convert --repo` takes: a hub id, a folder or a file. Such a source is
            converted on first use and kept in the cache.
        dtype: the trunk's compute dtype, float32 or bfloat16. Heads always compute in float32.
        attention: see `und3rstand_jax.model.attention.attend`.
        conversion: `cache`, `revision`, `token`, `hub_cache`, `offline`, `backbone` and `progress`; see `converted_checkpoint`.

    Raises:
        CheckpointError: the source cannot be found, read or converted, has no backbone, or is damaged (see `checkpoint.parts`).
        ConfigError: the source's config describes an unsupported architecture, such as a head count that does not fit the width.
        OptionError: `dtype` is neither float32 nor bfloat16, or `revision` or `backbone` was given for a source that does not use it.
        OutputError: the folder for conversions cannot be created or replaced.
    """
    return _loaded(source, conversion, lambda folder: _backbone(folder, read_checkpoint_info(folder), dtype, attention))


def load_backbone_and_probe(
    source: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionImplementation = "auto",
    **conversion: Unpack[Conversion],
) -> tuple[Backbone, Probes]:
    """A backbone that captures the probed layers by default, and the probes on them.

    Arguments and errors are those of `load_backbone`; a checkpoint without probes also raises a `CheckpointError`.
    """

    def read(folder: Path) -> tuple[Backbone, Probes]:
        info = read_checkpoint_info(folder)
        if info.probes is None:
            raise CheckpointError(f"{source} holds no probes; load it with load_backbone, or convert a probe checkpoint")
        params = _to_device(read_part(folder, info, "probes"), lambda path, leaf: leaf.astype(np.float32))
        return _backbone(folder, info, dtype, attention), Probes(PointmapProbes(info.probes), params)

    return _loaded(source, conversion, read)


def known_config(source: str | Path) -> ModelConfig | None:
    """A backbone's architecture, if no conversion is needed to know it: a published model's, or a converted checkpoint's.

    None if it is not known, or if a converted checkpoint has no backbone.

    Args:
        source: as for `load_backbone`.

    Raises:
        CheckpointError: the converted checkpoint cannot be read.
    """
    local = in_home(source)
    if is_checkpoint(local):
        return read_checkpoint_info(local).backbone
    return None if local.exists() else published_config(str(source))


def _loaded(source: str | Path, conversion: Conversion, read: Callable[[Path], T]) -> T:
    """The result of `read` for the converted checkpoint. A damaged one in the cache is converted again, once.

    If the JAX layout of a source is damaged, the PyTorch layout beside it is converted.
    """
    folder = converted_checkpoint(source, **conversion)
    try:
        return read(folder)
    except DamageError as error:
        entry = discard_damaged(folder, conversion.get("cache"), error)
        if entry is None:
            if folder.name != JAX or is_checkpoint(in_home(source)):  # the folder that the caller named
                raise
            _logger.warning("%s; using the PyTorch layout beside it", error)
            try:
                return read(converted_checkpoint(source, **conversion, jax_layout=False))
            except CheckpointError as other:
                raise neither_layout(error, other) from error
    # From the entry's record: `source` may be the cache entry itself, which a command looked up earlier.
    conversion |= {"revision": entry["revision"], "backbone": entry["backbone"]}
    return read(converted_checkpoint(entry["source"], **conversion))


def _backbone(folder: Path, info: CheckpointInfo, dtype: DTypeLike, attention: AttentionImplementation) -> Backbone:
    if info.backbone is None:
        raise CheckpointError(f"{folder} holds probes and no backbone; convert them again with --backbone")
    name = getattr(dtype, "__name__", str(dtype))
    if name not in ("float32", "bfloat16"):
        raise OptionError(f"dtype must be float32 or bfloat16; found {name}")
    kept, trunk = jnp.dtype(dtype), info.backbone.trunk
    params = _to_device(read_part(folder, info, "backbone"), lambda path, leaf: leaf.astype(stored_dtype(path, kept, trunk)))
    return Backbone(backbone_module(info.backbone, dtype=kept, attention=attention), params, ProbedLayers(info.probed_layers))


def stored_dtype(path: tuple[Any, ...], dtype: Any, trunk: Collection[str]) -> Any:
    """The dtype in which a leaf of the backbone's tree is stored if the trunk computes in `dtype`.

    `path` is as jax.tree_util gives it; `trunk` names the parts of the tree that belong to no head. Only kernels that are multiplied in
    bfloat16 are stored in it; norms, biases and heads stay in float32.
    """
    in_trunk_product = path[0].key in trunk and path[-1].key == "kernel"
    return dtype if in_trunk_product else jnp.dtype(jnp.float32)


def _to_device(tree: Tree, cast: Callable[[tuple[Any, ...], np.ndarray], np.ndarray]) -> Tree:
    """The tree's leaves as JAX arrays. Nothing else may reference the tree: each leaf is released as soon as it is copied."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    del tree
    leaves = []
    while paths:
        path, leaf = paths.pop(0)
        leaves.append(jnp.asarray(cast(path, leaf)))
    return jax.tree_util.tree_unflatten(structure, leaves)
