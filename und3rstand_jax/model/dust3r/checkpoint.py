"""What DUSt3R's checkpoints look like, and CroCo's, which have the same trunk. Other families with this trunk build on it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from und3rstand_jax.model.checkpoint_form import Architecture, CheckpointForm, Evidence, Shapes, TensorUses, block_count
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.names import HEAD, UNKNOWN_HEAD, UNUSED_PATTERNS, dust3r_names, head_fields, second_names
from und3rstand_jax.model.dust3r.options import IGNORED, OPTION_OF, PARSERS
from und3rstand_jax.model.tensor_names import NamedStack
from und3rstand_jax.support.errors import CheckpointError

_HEAD_DIM = 64  # of the published models; shapes do not show it

_STEM = re.compile(
    r"(patch_embed|enc_blocks|enc_norm|decoder_embed|dec_blocks2?|dec_norm|downstream_head[12]?|prediction_head)\.|mask_token$|"
    r"(enc|dec)_pos_embed$"
)
_WRAPPERS = re.compile(r"((backbone|model|net|encoder|dust3r|croco)\.)*")

# Only a CroCo trunk has names that end like this: whatever precedes them is the trunk's prefix.
_TRUNK = re.compile(r"(.*\.)?(patch_embed\.proj|(enc|dec)_blocks2?\.[0-9]+\.(attn\.qkv|cross_attn\.proj[qkv]))\.weight")


class DUSt3RForm(CheckpointForm):
    """The checkpoints of DUSt3R.

    Attributes:
        title: the family's name in descriptions of a model.
        config: the class of its configs.
        option_of: field -> option in PyTorch, where it has another name.
        unseen: fields that affect results and that no tensor shows.
    """

    anchor = "patch_embed.proj.weight"
    known_as: ClassVar[tuple[str, ...]] = ("DUSt3R", "CroCo")
    stated = frozenset({"enc_depth"})
    options = IGNORED.union(PARSERS, {"output_mode"})
    depths = ("enc_depth", "dec_depth")
    widths = ("enc_embed_dim", "dec_embed_dim", "patch_size", "mlp_ratio")
    title = "DUSt3R"
    config: ClassVar[type[BackboneConfig]] = BackboneConfig
    option_of: ClassVar[dict[str, str]] = OPTION_OF
    unseen: ClassVar[tuple[str, ...]] = ("enc_num_heads", "dec_num_heads", "rope_base", "depth_mode", "conf_mode")

    def names(self, config: Any, second_decoder: str) -> tuple[NamedStack, ...]:
        """The table of names; `second_decoder` names the PyTorch blocks that fill view 2's decoder."""
        return dust3r_names(config, second_decoder)

    def head_fields(self, tensors: Shapes) -> dict[str, Any] | None:
        """The fields that view 1's head with these tensors shows; None if the head is not one of this family's."""
        return head_fields(tensors)

    def fields_of_unknown_head(self) -> dict[str, Any] | None:
        """The fields of a model whose head belongs to no family; None if this family does not take such a trunk."""
        return {"head_type": None}

    def own_names(self, names: Iterable[str]) -> frozenset[str]:
        """Names below a trunk, and names of a DUSt3R that have only the usual prefixes."""
        names = tuple(names)
        trunks = {match[1] or "" for match in map(_TRUNK.fullmatch, names) if match}

        def is_own(name: str) -> bool:
            wrapper = _WRAPPERS.match(name)
            prefixes = {*trunks, wrapper[0] if wrapper else ""}
            return any(name.startswith(prefix) and _STEM.match(name[len(prefix) :]) for prefix in prefixes)

        return frozenset(filter(is_own, names))

    def has_heads(self, names: Iterable[str]) -> bool:
        """Whether view 1's head is one of this family's."""
        found = (re.fullmatch(rf"(?:.*\.)?{HEAD}1\.(.+)", name) for name in names)
        return self.head_fields({match[1]: () for match in found if match}) is not None

    def of_options(self, options: Mapping[str, Any], where: str, tensors: Shapes) -> Architecture:
        """The options state everything."""
        config = self.config.from_hub_config(options)
        evidence: dict[str, Evidence] = {}
        for field in dataclasses.fields(config):
            option = self.option_of.get(field.name, field.name)
            evidence[field.name] = ("read", where) if option in options else ("default", f"{where} does not say")
            if field.name == "head_type" and option in options and not config.heads:
                said = f"{where} says {options[option]!r}, which is not implemented: the trunk is converted, its heads are set aside"
                evidence[field.name] = ("read", said)
        return Architecture(config, evidence, self._guesses(config))

    def of_shapes(self, tensors: Shapes) -> Architecture | None:
        """The widths, depths and head; attention heads are taken to have as many channels as in the published models."""
        before = f"{HEAD}1."
        of_head = self.head_fields({name.removeprefix(before): shape for name, shape in tensors.items() if name.startswith(before)})
        of_head = self.fields_of_unknown_head() if of_head is None else of_head
        if of_head is None:
            return None
        try:
            enc_dim, _, patch, _ = tensors[self.anchor]
            dec_dim = tensors["decoder_embed.weight"][0]
            mlp_ratio = tensors["enc_blocks.0.mlp.fc1.weight"][0] // enc_dim
        except (KeyError, ValueError, IndexError, ZeroDivisionError):
            raise CheckpointError(
                f"there is no config, and the shapes of {self.anchor}, decoder_embed.weight or an MLP do not show the widths"
            ) from None
        inferred: dict[str, Any] = {
            "patch_size": patch,
            "enc_embed_dim": enc_dim,
            "enc_depth": block_count("enc_blocks", tensors),
            "dec_embed_dim": dec_dim,
            "dec_depth": block_count("dec_blocks", tensors),
            "mlp_ratio": mlp_ratio,
            **of_head,
        }
        guessed: dict[str, Any] = {"enc_num_heads": max(1, enc_dim // _HEAD_DIM), "dec_num_heads": max(1, dec_dim // _HEAD_DIM)}
        config = self.config(**inferred, **guessed)
        rest: Evidence = ("default", "no config; as in the published 512 models")
        evidence: dict[str, Evidence] = {field.name: rest for field in dataclasses.fields(config)}
        evidence |= dict.fromkeys(inferred, ("inferred", "names and shapes"))
        evidence |= dict.fromkeys(guessed, ("default", f"no config; {_HEAD_DIM} channels a head, as in every published model"))
        # Whether a tensor has one more channel cannot be seen from its shape.
        evidence |= {field: rest for field in self.unseen if field in of_head}
        return Architecture(config, evidence, self._guesses(config))

    def _guesses(self, config: BackboneConfig) -> tuple[str, ...]:
        # Without a head its output modes do not matter.
        return tuple(field for field in self.unseen if config.heads or not field.endswith("_mode"))

    def uses(self, config: Any, tensors: Iterable[str]) -> TensorUses:
        """A CroCo checkpoint's one decoder fills both."""
        tensors = tuple(tensors)
        has_head = any(name.startswith(HEAD) for name in tensors)
        # A checkpoint with a head was trained on two decoders: there a missing one is damage, not CroCo.
        is_croco = not has_head and not any(name.startswith("dec_blocks2.") for name in tensors)
        unused = UNUSED_PATTERNS | ({} if config.heads else {UNKNOWN_HEAD: "the heads' type is not implemented: trunk only"})
        if is_croco:
            title = "CroCo v2 trunk (one decoder, copied for the second view; no head)"
        elif not config.heads:
            title = "trunk alone: its heads are of a type not implemented" if has_head else "trunk alone: no heads"
        else:
            title = f"{self.title} with a {config.head_type} head, of no published size"
        return TensorUses(
            stacks=self.names(config, "dec_blocks" if is_croco else "dec_blocks2"),
            unused=unused,
            second_names=second_names(),
            title=title,
            is_whole=bool(config.heads) and not is_croco,
            facts=(("second decoder", "copy of the first", "the checkpoint has no dec_blocks2: CroCo"),) if is_croco else (),
        )
