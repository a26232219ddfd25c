"""Loads backbones and probes from converted checkpoints; converts first where that has not been done."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.checkpoint.format import VERSION, CheckpointInfo, is_checkpoint, read_checkpoint_info
from und3rstand_jax.checkpoint.trees import read_tree
from und3rstand_jax.model.attention import AttentionImplementation
from und3rstand_jax.model.backbone import Backbone, ProbedLayers
from und3rstand_jax.model.dust3r import DUSt3R
from und3rstand_jax.probes.probes import PointmapProbes, Probes
from und3rstand_jax.support.errors import UserError

CACHE_VARIABLE = "UND3RSTAND_JAX_CACHE"


def load_backbone(
    source: str | Path,
    *,
    dtype: Any = jnp.float32,
    attention: AttentionImplementation = "auto",
    cache: str | Path | None = None,
    **conversion: Any,
) -> Backbone:
    """A DUSt3R, ready to run.

    Args:
        source: a converted checkpoint, or what `python -m convert --repo` takes: a hub id, a folder or a file, which is
            converted on first use and kept in the cache.
        dtype: what the trunk computes in, float32 or bfloat16. Heads are float32 always.
        attention: see `und3rstand_jax.model.attention.attend`.
        cache: folder for conversions; by default `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder.
        conversion: `revision`, `token`, `hub_cache`, `offline` and `backbone`, as the converter has them.

    Raises:
        UserError: the source cannot be loaded, or holds no backbone.
    """
    folder = converted_checkpoint(source, cache=cache, **conversion)
    return _backbone(folder, read_checkpoint_info(folder), dtype, attention)


def load_backbone_and_probe(
    source: str | Path,
    *,
    dtype: Any = jnp.float32,
    attention: AttentionImplementation = "auto",
    cache: str | Path | None = None,
    **conversion: Any,
) -> tuple[Backbone, Probes]:
    """A DUSt3R that captures the probed layers by default, and the probes on them.

    Arguments and errors are those of `load_backbone`; a checkpoint without probes is a `UserError` too.
    """
    folder = converted_checkpoint(source, cache=cache, **conversion)
    info = read_checkpoint_info(folder)
    if info.probes is None:
        raise UserError(f"{source} holds no probes; load it with load_backbone, or convert a probe checkpoint")
    module = PointmapProbes(info.probes)
    params = _to_device(read_tree(folder / "probes"), lambda path, leaf: leaf.astype(np.float32))
    return _backbone(folder, info, dtype, attention), Probes(module, params)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where conversions are kept: the argument, else `$UND3RSTAND_JAX_CACHE`, else the platform's cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("und3rstand_jax")


def _backbone(folder: Path, info: CheckpointInfo, dtype: Any, attention: AttentionImplementation) -> Backbone:
    if info.backbone is None:
        raise UserError(f"{folder} holds probes and no backbone; convert them again with --backbone")
    name = getattr(dtype, "__name__", str(dtype))
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype must be float32 or bfloat16; found {name}")
    dtype = jnp.dtype(dtype)

    params = _to_device(read_tree(folder / "backbone"), lambda path, leaf: leaf.astype(stored_dtype(path, dtype)))
    return Backbone(DUSt3R(info.backbone, dtype=dtype, attention=attention), params, ProbedLayers(info.probed_layers))


def stored_dtype(path: tuple[Any, ...], dtype: Any) -> Any:
    """What a leaf of the backbone's tree is kept in where the trunk computes in `dtype`; `path` as jax.tree_util gives it.

    Only what is multiplied in bfloat16 is stored so; norms, biases and heads stay exact.
    """
    in_trunk_product = not path[0].key.startswith("head") and path[-1].key == "kernel"
    return dtype if in_trunk_product else jnp.dtype(jnp.float32)


def _to_device(tree: Any, cast: Any) -> Any:
    """JAX arrays of a tree that nobody else holds: each leaf is let go as soon as it is copied."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    del tree
    leaves = []
    while paths:
        path, leaf = paths.pop(0)
        leaves.append(jnp.asarray(cast(path, leaf)))
    return jax.tree_util.tree_unflatten(structure, leaves)


def converted_checkpoint(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    hub_cache: str | None = None,
    offline: bool = False,
    backbone: str | Path | None = None,
) -> Path:
    """The folder of a source's converted checkpoint, made now if it is not in the cache; arguments as in `load_backbone`."""
    local = Path(source).expanduser()
    if is_checkpoint(local):
        return local
    base = None if backbone is None else str(backbone)
    folder = cache_folder(cache) / _cache_name(str(source), revision, base or _named_backbone(local))
    if is_checkpoint(folder):
        return folder
    # The library itself neither converts nor reaches for a network: the converter does, when it is needed.
    from und3rstand_jax.convert.findings import ProbeOptions
    from und3rstand_jax.convert.planning import HubAccess, planned
    from und3rstand_jax.convert.writing import convert

    with planned(str(source), base, HubAccess(revision, token, hub_cache, offline), ProbeOptions()) as plan:
        try:
            convert(plan, folder, show_progress=True)
        except UserError:
            # Another process may have converted the same source meanwhile, and its result serves as well.
            if not is_checkpoint(folder):
                raise
    return folder


def _named_backbone(source: Path) -> str | None:
    """The backbone that a local probe checkpoint names in its config or card: what is converted depends on it too."""
    if not source.exists():
        return None
    from und3rstand_jax.convert.sources.source import open_source

    opened = open_source(str(source))
    opened.tensors.close()
    return opened.base_model


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
