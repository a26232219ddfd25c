"""What VGGT's checkpoints look like. Their config states three sizes; the tensors show most of the rest."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from und3rstand_jax.model.checkpoint_form import Architecture, CheckpointForm, Evidence, Shapes, TensorUses, block_count
from und3rstand_jax.model.vggt.config import PUBLISHED, VGGTConfig
from und3rstand_jax.model.vggt.names import ENCODER, HEADS, UNUSED, vggt_names
from und3rstand_jax.model.vggt.options import ENABLE, PARSERS, STATED, assumed, read
from und3rstand_jax.support.errors import CheckpointError

_OWN = r"(aggregator|camera_head|depth_head|point_head|track_head)\."
_TRUNK = re.compile(r"(.*\.)?aggregator\.(patch_embed\.patch_embed\.proj|(frame|global)_blocks\.[0-9]+\.attn\.qkv)\.weight")
_UNSEEN = ("enc_num_heads", "camera_num_heads", "camera_iterations", "dpt_layers", "rope_base")
_DPT = rf"({HEADS['depth']}|{HEADS['points']})\."


class VGGTForm(CheckpointForm):
    """The checkpoints of VGGT."""

    anchor = f"{ENCODER}patch_embed.proj.weight"
    known_as = ("VGGT",)
    stated = STATED
    options = frozenset(PARSERS)
    depths = ("depth", "enc_depth", "camera_depth")
    widths = ("embed_dim", "patch_size", "mlp_ratio", "dpt_width")

    def own_names(self, names: Iterable[str]) -> frozenset[str]:
        """All modules beside an aggregator: by their names alone, they might belong to any model."""
        names = tuple(names)
        trunks = {match[1] or "" for match in map(_TRUNK.fullmatch, names) if match}
        return frozenset(name for name in names for trunk in trunks if re.match(re.escape(trunk) + _OWN, name))

    def has_heads(self, names: Iterable[str]) -> bool:
        """Whether any name belongs to a camera, depth or point head."""
        return any(head in name.split(".") for name in names for head in HEADS.values())

    def of_options(self, options: Mapping[str, Any], where: str, tensors: Shapes) -> Architecture:
        """Combines the options with the tensors, which must not contradict them."""
        return self._architecture(options, where, tensors)

    def of_shapes(self, tensors: Shapes) -> Architecture:
        """Everything but DINOv2's and the camera head's head counts, its iterations, RoPE's base and which pairs the DPT heads read."""
        return self._architecture({}, "", tensors)

    def _architecture(self, options: Mapping[str, Any], where: str, tensors: Shapes) -> Architecture:
        stated = read(options)
        enabled = {name: stated.pop(option) for name, option in ENABLE.items() if option in stated}
        stated.pop("enable_track", None)
        shown = _shown(tensors, stated.get("img_size"))
        held = tuple(name for name, part in HEADS.items() if any(tensor.startswith(f"{part}.") for tensor in tensors))
        faults = [
            f"{field} {value} (the tensors show {shown[field]})" for field, value in stated.items() if shown.get(field, value) != value
        ]
        faults += [f"{ENABLE[name]} (there are no tensors {HEADS[name]}.*)" for name, on in enabled.items() if on and name not in held]
        if faults:
            raise CheckpointError(f"{where} says {', '.join(faults)}; use the config that belongs to the tensors")
        heads = tuple(name for name in held if enabled.get(name, True))
        sizes = {"embed_dim": shown["embed_dim"], "depth": shown.get("depth", VGGTConfig.depth)}
        config = VGGTConfig(**{**assumed(**sizes), **shown, **stated, "head_names": heads})

        not_said = f"{where} does not say, and no shape shows it" if where else "no config, and no shape shows it"
        rest: Evidence = ("default", f"{not_said}; as in VGGT-1B")
        evidence: dict[str, Evidence] = {field.name: rest for field in dataclasses.fields(config)}
        evidence |= dict.fromkeys((*shown, "head_names"), ("inferred", "names and shapes"))
        evidence |= dict.fromkeys(stated, ("read", where))
        if heads != held:
            evidence["head_names"] = ("read", f"{where} does not enable the others")
        # At the published sizes the published values are no guess.
        is_published = config in PUBLISHED.values()
        guesses = () if is_published else tuple(field for field in _UNSEEN if _matters(field, heads))
        return Architecture(config, evidence, guesses)

    def uses(self, config: Any, tensors: Iterable[str]) -> TensorUses:
        """The tensors of a head that the config does not enable stay unused."""
        off = {rf"{part}\..*": "the config does not enable this head" for name, part in HEADS.items() if name not in config.head_names}
        title = "VGGT of no published size" if config.heads else "trunk alone: no heads"
        return TensorUses(vggt_names(config), UNUSED | off, {}, title, bool(config.heads))


def _matters(field: str, heads: tuple[str, ...]) -> bool:
    """Whether a model with these heads has a use for the field."""
    if field.startswith("camera_"):
        return "camera" in heads
    return field != "dpt_layers" or bool({"depth", "points"} & set(heads))


def _shown(tensors: Shapes, img_size: tuple[int, int] | None) -> dict[str, Any]:
    """The fields that shapes show. Fields of missing tensors are left out; the missing tensors are reported later.

    Raises:
        CheckpointError: the shapes do not show the sizes of a patch and a token.
    """
    anchor = tensors[VGGTForm.anchor]
    if len(anchor) != 4 or 0 in anchor:
        raise CheckpointError(f"{VGGTForm.anchor} has the shape {anchor}; expected (channels, 3, patch size, patch size)")
    width, _, patch, _ = anchor
    shown: dict[str, Any] = {"embed_dim": width, "patch_size": patch}

    def axis(pattern: str, index: int) -> int | None:
        """An axis of the first tensor that has such a name and this axis."""
        found = (shape for name, shape in tensors.items() if re.fullmatch(pattern, name))
        return next((shape[index] for shape in found if -len(shape) <= index < len(shape)), None)

    blocks = r"aggregator\.(frame|global)_blocks\.\d+\."
    shown |= {"depth": max(block_count(f"aggregator.{kind}_blocks", tensors) for kind in ("frame", "global"))}
    shown |= {"enc_depth": block_count(f"{ENCODER}blocks", tensors), "camera_depth": block_count("camera_head.trunk", tensors)}
    shown["num_registers"] = axis(rf"aggregator\.register_token|{re.escape(ENCODER)}register_tokens", -2)
    shown["dpt_width"] = axis(_DPT + r"scratch\.layer\d_rn\.weight", 0)
    if head_dim := axis(blocks + r"attn\.[qk]_norm\.weight", 0):
        shown["num_heads"] = max(1, width // head_dim)
    if hidden := axis(blocks + r"mlp\.fc1\.weight", 0):
        shown["mlp_ratio"] = max(1, hidden // width)
    channels = tuple(axis(_DPT + rf"projects\.{k}\.weight", 0) for k in range(4))
    shown["dpt_channels"] = channels if all(channels) else None
    if positions := axis(re.escape(f"{ENCODER}pos_embed"), 1):
        side = math.isqrt(positions - 1)
        sides = (side * patch, side * patch)
        if img_size is not None and 1 + img_size[0] // patch * (img_size[1] // patch) == positions:
            sides = img_size  # for a grid that is not square, only the config says which
        shown["img_size"] = sides
    return {field: value for field, value in shown.items() if value}
