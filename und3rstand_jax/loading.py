"""Loads backbones and probes from converted checkpoints, and converts a source on first use."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from und3rstand_jax.checkpoint.format import VERSION, CheckpointInfo, is_checkpoint, read_checkpoint_info
from und3rstand_jax.checkpoint.trees import Tree, read_tree
from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.backbone import Backbone, ProbedLayers
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.probes.probes import PointmapProbes, Probes
from und3rstand_jax.support.errors import CheckpointError, OptionError, UserError

CACHE_VARIABLE = "UND3RSTAND_JAX_CACHE"


class Conversion(TypedDict, total=False):
    """How a source that is not converted yet is reached, as in the converter's options."""

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
    """A DUSt3R, ready to run.

    Args:
        source: a converted checkpoint, or what `python -m convert --repo` takes: a hub id, a folder or a file, which is
            converted on first use and kept in the cache.
        dtype: what the trunk computes in, float32 or bfloat16. Heads are float32 always.
        attention: see `und3rstand_jax.model.attention.attend`.
        conversion: `cache`, `revision`, `token`, `hub_cache`, `offline`, `backbone` and `progress`; see `converted_checkpoint`.

    Raises:
        CheckpointError: the source cannot be found, read or converted, or holds no backbone.
        ConfigError: the source's config states an architecture that is not supported, such as a head count that does not fit.
        OptionError: `dtype` is another one, or `revision` or `backbone` was given and the source has no use for it.
        OutputError: the folder for conversions cannot be created or replaced.
    """
    folder = converted_checkpoint(source, **conversion)
    return _backbone(folder, read_checkpoint_info(folder), dtype, attention)


def load_backbone_and_probe(
    source: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionImplementation = "auto",
    **conversion: Unpack[Conversion],
) -> tuple[Backbone, Probes]:
    """A DUSt3R that captures the probed layers by default, and the probes on them.

    Arguments and errors are those of `load_backbone`; a checkpoint without probes is a `CheckpointError` too.
    """
    folder = converted_checkpoint(source, **conversion)
    info = read_checkpoint_info(folder)
    if info.probes is None:
        raise CheckpointError(f"{source} holds no probes; load it with load_backbone, or convert a probe checkpoint")
    params = _to_device(read_tree(folder / "probes"), lambda path, leaf: leaf.astype(np.float32))
    return _backbone(folder, info, dtype, attention), Probes(PointmapProbes(info.probes), params)


def _backbone(folder: Path, info: CheckpointInfo, dtype: DTypeLike, attention: AttentionImplementation) -> Backbone:
    if info.backbone is None:
        raise CheckpointError(f"{folder} holds probes and no backbone; convert them again with --backbone")
    name = getattr(dtype, "__name__", str(dtype))
    if name not in ("float32", "bfloat16"):
        raise OptionError(f"dtype must be float32 or bfloat16; found {name}")
    kept = jnp.dtype(dtype)
    params = _to_device(read_tree(folder / "backbone"), lambda path, leaf: leaf.astype(stored_dtype(path, kept)))
    return Backbone(DUSt3R(info.backbone, dtype=kept, attention=attention), params, ProbedLayers(info.probed_layers))


def stored_dtype(path: tuple[Any, ...], dtype: Any) -> Any:
    """What a leaf of the backbone's tree is kept in where the trunk computes in `dtype`; `path` as jax.tree_util gives it.

    Only what is multiplied in bfloat16 is stored in it; norms, biases and heads stay exact.
    """
    in_trunk_product = not path[0].key.startswith("head") and path[-1].key == "kernel"
    return dtype if in_trunk_product else jnp.dtype(jnp.float32)


def _to_device(tree: Tree, cast: Callable[[tuple[Any, ...], np.ndarray], np.ndarray]) -> Tree:
    """JAX arrays of a tree that nobody else holds: each leaf is released as soon as it is copied."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    del tree
    leaves = []
    while paths:
        path, leaf = paths.pop(0)
        leaves.append(jnp.asarray(cast(path, leaf)))
    return jax.tree_util.tree_unflatten(structure, leaves)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where conversions are kept: the argument, else `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("und3rstand_jax")


def converted_checkpoint(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    hub_cache: str | None = None,
    offline: bool = False,
    backbone: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """The folder of a source's converted checkpoint, made now if it is not in the cache.

    Args:
        source: a converted checkpoint, which is its own folder, or a hub id, folder or file.
        cache: folder for conversions; by default `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub.
        hub_cache: folder for downloaded files.
        offline: whether to do without the network.
        backbone: the backbone of a probe checkpoint, where it is not the one that its config or model card names.
        progress: whether downloads and the conversion show progress bars on a terminal. Nothing else is printed.

    Raises:
        CheckpointError: the source cannot be found, read or converted.
        ConfigError: its config states an architecture that is not supported, such as a head count that does not fit.
        OptionError: `revision` or `backbone` was given, and the source has no use for it.
        OutputError: the folder for conversions cannot be created or replaced.
        OSError: the disk is full.
    """
    local = Path(source).expanduser()
    if is_checkpoint(local):
        return local
    # The converter is imported only when it is needed: it brings the hub's client and the readers of PyTorch files.
    from und3rstand_jax.convert.options import HubAccess, ProbeOptions
    from und3rstand_jax.convert.planning import open_plan
    from und3rstand_jax.convert.sources.source import open_source
    from und3rstand_jax.convert.writing import convert

    base = None if backbone is None else str(backbone)
    named = base
    if named is None and local.exists():
        # The backbone that a local probe checkpoint names in its config or card: the result depends on it too.
        opened = open_source(str(source))
        opened.tensors.close()
        named = opened.base_model
    folder = cache_folder(cache) / _cache_name(str(source), revision, named)
    if is_checkpoint(folder):
        return folder
    access = HubAccess(revision, token, hub_cache, offline)
    with open_plan(str(source), base, access, ProbeOptions(), progress=progress) as plan:
        try:
            convert(plan, folder, progress=progress)
        except UserError:
            # Another process may have converted the same source meanwhile, and its result serves as well.
            if not is_checkpoint(folder):
                raise
    return folder


def _cache_name(source: str, revision: str | None, backbone: str | None) -> str:
    """A readable name that differs whenever the result would: another revision, a local file that has changed, another format."""
    key = repr((VERSION, source, revision, backbone, _state(source), _state(backbone) if backbone else None))
    path = Path(source).expanduser()
    readable = re.sub(r"[^\w.-]+", "--", path.resolve().name if path.exists() else source)
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _state(source: str) -> list[tuple[str, int, int]]:
    """Path, size and time of every file that a local source is read from; empty for a hub id."""
    path = Path(source).expanduser()
    if not path.exists():
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [file for file in (path, path.with_name("config.json")) if file.exists()]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
