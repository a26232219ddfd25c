"""Loads backbones and probes from converted checkpoints; converts first where that has not been done."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.attention import AttentionImplementation
from und3rstand_jax.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info, read_tree
from und3rstand_jax.dust3r import DUSt3R
from und3rstand_jax.errors import UserError
from und3rstand_jax.model import Backbone, ProbedLayers, Probes
from und3rstand_jax.probes import PointmapProbes

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
        attention: see `und3rstand_jax.attention.attend`.
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
        return Path(cache)
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    import platformdirs

    return platformdirs.user_cache_path("und3rstand_jax")


def _backbone(folder: Path, info: CheckpointInfo, dtype: Any, attention: AttentionImplementation) -> Backbone:
    if info.backbone is None:
        raise UserError(f"{folder} holds probes and no backbone; convert them again with --backbone")
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"dtype must be float32 or bfloat16; found {dtype}")

    def cast(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        # Only what is multiplied in bfloat16 is stored so; norms, biases and heads stay exact.
        in_trunk_product = not path[0].key.startswith("head") and path[-1].key == "kernel"
        return leaf.astype(dtype if in_trunk_product else np.float32)

    params = _to_device(read_tree(folder / "backbone"), cast)
    return Backbone(DUSt3R(info.backbone, dtype=dtype, attention=attention), params, ProbedLayers(info.probed_layers))


def _to_device(tree: Any, cast: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(cast(path, leaf)), tree)


def converted_checkpoint(source: str | Path, *, cache: str | Path | None = None, **conversion: Any) -> Path:
    """The folder of a source's converted checkpoint, made now if it is not in the cache; arguments as in `load_backbone`."""
    if is_checkpoint(source):
        return Path(source)
    folder = cache_folder(cache) / _cache_name(str(source), conversion)
    if not is_checkpoint(folder):
        # The library itself neither converts nor reaches for a network: the converter does, when it is needed.
        from convert.planning import HubAccess, planned
        from convert.probes.plan import ProbeOptions
        from convert.writing import convert

        options = dict(conversion)
        backbone = options.pop("backbone", None)
        access = HubAccess(
            options.pop("revision", None), options.pop("token", None), options.pop("hub_cache", None), options.pop("offline", False)
        )
        if options:
            raise TypeError(f"unknown arguments: {', '.join(options)}")
        with planned(str(source), backbone, access, ProbeOptions()) as plan:
            convert(plan, folder, show_progress=True)
    return folder


def _cache_name(source: str, conversion: dict[str, Any]) -> str:
    """A readable name that differs whenever the source does: another revision, or a local file that has changed."""
    path = Path(source).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = repr((source, conversion.get("revision"), conversion.get("backbone"), state))
    readable = re.sub(r"[^\w.-]+", "--", source if not files else path.resolve().name)
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
