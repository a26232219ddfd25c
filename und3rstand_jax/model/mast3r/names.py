"""What MASt3R adds to DUSt3R's parameters: the names and shapes of its heads for local features."""

from collections.abc import Iterable, Mapping
from typing import Any

from und3rstand_jax.model.dust3r.names import dust3r_names, head_modules
from und3rstand_jax.model.dust3r.shapes import dust3r_shapes
from und3rstand_jax.model.mast3r.config import MASt3RConfig
from und3rstand_jax.model.tensor_names import NamedStack, Row, Shape
from und3rstand_jax.model.tensor_shapes import kernel_shapes

_PATCH_AREA = 16**2  # the only one that a DPT head takes
_LOCAL_FEATURES = "head_local_features"
_FEATURES: tuple[Row, ...] = tuple((layer, f"{_LOCAL_FEATURES}.{layer}", "linear") for layer in ("fc1", "fc2"))


def head_fields(tensors: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The fields that a head with these tensors shows; None if it belongs to another family.

    Descriptors are assumed to have their own confidence, as in the published model: it would be one more channel of the same tensor.
    """
    if head_modules(tensors) != {"dpt", _LOCAL_FEATURES}:
        return None
    (outputs, *_) = tensors.get(f"{_LOCAL_FEATURES}.fc2.bias") or (0,)
    return {"head_type": "catmlp+dpt", "two_confs": True, "desc_dim": max(outputs // _PATCH_AREA - 1, 1)}


def refusal(names: Iterable[str]) -> str | None:
    """Why a model whose tensors, options or class have these names is refused; None if it is not."""
    names = tuple(names)
    if any("dune" in name.lower() for name in names):
        return "MASt3R with a DUNE encoder is not supported; expected CroCo's, as in MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"
    heads = {name.split(".")[name.split(".").index(_LOCAL_FEATURES) - 1] for name in names if _LOCAL_FEATURES in name.split(".")[1:]}
    with_points = {head for head in heads if any(f"{head}.dpt." in name for name in names)}
    if heads != with_points:
        return "MASt3R with catconv heads (convolutions in place of DPT) is not supported; expected catmlp+dpt"
    return None


def mast3r_names(config: MASt3RConfig, second_decoder: str = "dec_blocks2") -> tuple[NamedStack, ...]:
    """Every module of the backbone and its name; see `und3rstand_jax.model.dust3r.names.dust3r_names`."""
    features = (NamedStack(f"features{view}/", f"downstream_head{view}.", 0, _FEATURES) for view in (1, 2))
    return *dust3r_names(config, second_decoder), *features


def mast3r_shapes(config: MASt3RConfig) -> dict[str, Shape]:
    """Path -> shape of every leaf of `MASt3R(config)`'s parameter tree."""
    width, hidden, outputs = config.feature_widths
    features = (*kernel_shapes("fc1", width, hidden), *kernel_shapes("fc2", hidden, outputs))
    return dust3r_shapes(config) | {f"features{view}/{path}": shape for view in (1, 2) for path, shape in features}
