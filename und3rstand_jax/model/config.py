"""What a DUSt3R backbone is made of, and how published checkpoints say it.

The hub's `config.json` and the `args.model` string of a `.pth` file hold the same keyword arguments; both end in one
frozen `BackboneConfig`. An option this implementation does not have is refused by name, never ignored.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from und3rstand_jax.model.layer_ids import layer_ids
from und3rstand_jax.support.errors import UserError

DEPTH_MODES = ("exp", "square", "linear")


CONF_MODES = ("exp", "sigmoid")


HEAD_TYPES = ("linear", "dpt")


Mode = tuple[str, float, float]
"""An output activation as DUSt3R writes it: (name, lower bound, upper bound)."""


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Architecture of a DUSt3R model (Wang et al., CVPR 2024, section 3 and its supplementary).

    `img_size` is (height, width) of the training images and only a record: the model takes any multiples of 16.
    `head_type` is None for a trunk without a head (CroCo, or a checkpoint whose head is not known).
    """

    img_size: tuple[int, int] = (512, 512)
    patch_size: int = 16
    enc_embed_dim: int = 1024
    enc_depth: int = 24
    enc_num_heads: int = 16
    dec_embed_dim: int = 768
    dec_depth: int = 12
    dec_num_heads: int = 12
    mlp_ratio: int = 4
    rope_base: float = 100.0
    head_type: str | None = "dpt"
    depth_mode: Mode = ("exp", -math.inf, math.inf)
    conf_mode: Mode = ("exp", 1.0, math.inf)

    def __post_init__(self) -> None:
        complaints = [f"{name} must be at least 1; found {value}" for name in _WIDTHS if (value := getattr(self, name)) < 1]
        for side in ("enc", "dec"):
            dim, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if heads >= 1 and dim % (4 * heads):
                complaints.append(
                    f"{side}_embed_dim {dim} must be a multiple of 4·{side}_num_heads = {4 * heads}: "
                    "2-D RoPE splits every head's channels in four"
                )
        if self.head_type is not None and self.head_type not in HEAD_TYPES:
            complaints.append(f"head_type {self.head_type!r} is not one of {', '.join(HEAD_TYPES)}")
        if self.head_type == "dpt" and self.dec_depth % 4:
            complaints.append(f"dec_depth {self.dec_depth} must be a multiple of 4 for the DPT head, which reads 0, 1/2, 3/4 and 1 of it")
        if self.head_type == "dpt" and self.patch_size != 16:
            complaints.append(f"patch_size {self.patch_size} is not supported with the DPT head, which enlarges tokens 16 times")
        if not 1 < self.rope_base < math.inf:
            complaints.append(f"RoPE's base must be a finite number above 1; found {self.rope_base:g}")
        complaints += mode_complaints("depth_mode", self.depth_mode, DEPTH_MODES)
        complaints += mode_complaints("conf_mode", self.conf_mode, CONF_MODES)
        if self.depth_mode[1:] != (-math.inf, math.inf):
            complaints.append(f"depth_mode {self.depth_mode} with bounds is not supported; expected (name, -inf, inf)")
        if complaints:
            raise UserError("backbone config: " + "; ".join(complaints))

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """Every layer id of this backbone, in network order."""
        return layer_ids(self.enc_depth, self.dec_depth)

    def layer_width(self, layer_id: str) -> int:
        """Number of channels of a layer's tokens."""
        return self.enc_embed_dim if layer_id.startswith("encoder.") else self.dec_embed_dim

    @classmethod
    def dust3r_224_linear(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_224_linear`."""
        return cls(img_size=(224, 224), head_type="linear")

    @classmethod
    def dust3r_512_linear(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_512_linear`."""
        return cls(img_size=(512, 512), head_type="linear")

    @classmethod
    def dust3r_512_dpt(cls) -> "BackboneConfig":
        """`naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt`, the backbone of the published probes."""
        return cls(img_size=(512, 512), head_type="dpt")

    @classmethod
    def from_hub_config(cls, options: Mapping[str, Any]) -> "BackboneConfig":
        """The config a hub `config.json` of a DUSt3R or CroCo model describes.

        Raises:
            UserError: an option is unknown, or has a value this implementation does not support. All are listed.
        """
        return _from_options(cls, options)

    @classmethod
    def from_args_string(cls, call: str) -> "BackboneConfig":
        """The config in a `.pth` file's `args.model`: a Python call such as `AsymmetricCroCo3DStereo(enc_depth=24, …)`.

        The string is parsed and never evaluated: only literals, `inf` and their negations are taken.

        Raises:
            UserError: the string is not such a call, or an option is not supported.
        """
        return _from_options(cls, parse_args_string(call)[1])

    @staticmethod
    def known_options() -> frozenset[str]:
        """The options that `from_hub_config` understands."""
        return frozenset({*_WIDTHS, *_IGNORED, *_OTHER_OPTIONS})

    def to_hub_config(self) -> dict[str, Any]:
        """The options of the hub's `config.json` that rebuild this config (infinities stay floats)."""
        return {
            "conf_mode": list(self.conf_mode),
            "dec_depth": self.dec_depth,
            "dec_embed_dim": self.dec_embed_dim,
            "dec_num_heads": self.dec_num_heads,
            "depth_mode": list(self.depth_mode),
            "enc_depth": self.enc_depth,
            "enc_embed_dim": self.enc_embed_dim,
            "enc_num_heads": self.enc_num_heads,
            "freeze": "none",
            **({"head_type": self.head_type} if self.head_type else {}),
            "img_size": list(self.img_size),
            "landscape_only": False,
            "output_mode": "pts3d",
            "patch_embed_cls": "PatchEmbedDust3R",
            "pos_embed": f"RoPE{int(self.rope_base) if self.rope_base == int(self.rope_base) else self.rope_base}",
            # The original takes these two as well, but its own configs leave them at their defaults.
            **({} if self.patch_size == BackboneConfig.patch_size else {"patch_size": self.patch_size}),
            **({} if self.mlp_ratio == BackboneConfig.mlp_ratio else {"mlp_ratio": self.mlp_ratio}),
        }


def mode_complaints(name: str, mode: Mode, known: tuple[str, ...]) -> list[str]:
    """What is wrong with an output activation `mode`, if anything."""
    if len(mode) != 3 or mode[0] not in known:
        return [f"{name} {mode!r} is not supported; expected (one of {', '.join(known)}; lower bound; upper bound)"]
    if not mode[1] < mode[2]:
        return [f"{name} {mode!r}: the lower bound must be below the upper one"]
    if mode[0] == "sigmoid" and not (math.isfinite(mode[1]) and math.isfinite(mode[2])):
        return [f"{name} {mode!r}: a sigmoid lies between two finite bounds; give them (sigmoid,0,1)"]
    return []


def parse_args_string(call: str) -> tuple[str, dict[str, Any]]:
    """Class name and keyword arguments of a model call written as a string, without evaluating it."""
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"the checkpoint's args.model is not a Python call: {call[:80]!r} ({type(error).__name__})") from None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise UserError(f"the checkpoint's args.model must read Name(option=literal, …); found {call[:80]!r}")
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise UserError("the checkpoint's args.model unpacks a mapping (**…); only option=literal is taken")
        if keyword.arg in options:
            raise UserError(f"the checkpoint's args.model gives {keyword.arg} twice")
        try:
            options[keyword.arg] = _literal(keyword.value, keyword.arg)
        except RecursionError:
            raise UserError(f"the checkpoint's args.model gives {keyword.arg} as code nested without end; nothing was evaluated") from None
    return node.func.id, options


def _literal(node: ast.expr, option: str) -> Any:
    """A literal; unlike `ast.literal_eval` it knows the bare name `inf` that DUSt3R writes."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, option)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(item, option) for item in node.elts)
    raise UserError(
        f"the checkpoint's args.model gives {option} as code, not as a literal: {ast.unparse(node)[:80]!r}; nothing was evaluated"
    )


# Options that change nothing here: training state, or what the original itself ignores when it loads for use.
_IGNORED = {"freeze", "landscape_only", "mask_ratio", "two_confs", "desc_conf_mode", "desc_mode"}


_OTHER_OPTIONS = ("img_size", "head_type", "depth_mode", "conf_mode", "pos_embed", "patch_embed_cls", "output_mode", "norm_im2_in_dec")


_PATCH_EMBEDDINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed", "PatchEmbed")


_WIDTHS = ("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads", "patch_size", "mlp_ratio")


def _from_options(cls: type[BackboneConfig], options: Mapping[str, Any]) -> BackboneConfig:
    fields: dict[str, Any] = {"head_type": None}
    complaints = []
    for option, value in options.items():
        if option in _WIDTHS:
            if not _is_count(value):
                complaints.append(f"{option} must be a positive integer; found {value!r}")
            else:
                fields[option] = int(value)
        elif option == "img_size":
            size = (value, value) if _is_count(value) else value
            if isinstance(size, tuple | list) and len(size) == 2 and all(_is_count(side) for side in size):
                fields[option] = tuple(size)
            else:
                complaints.append(f"img_size must be one or two positive integers; found {value!r}")
        elif option == "head_type":
            # A head we do not know (MASt3R's catmlp+dpt) leaves the trunk usable; the converter says so.
            fields[option] = value if value in HEAD_TYPES else None
            if value is not None and not isinstance(value, str):
                complaints.append(f"head_type must be a name; found {value!r}")
        elif option in ("depth_mode", "conf_mode"):
            try:
                fields[option] = _mode(value)
            except (TypeError, ValueError):
                complaints.append(f"{option} must read [name, lower bound, upper bound]; found {value!r}")
        elif option == "pos_embed":
            rope = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", str(value))
            if rope is None:
                complaints.append(f"pos_embed {value!r} is not supported; expected RoPE followed by its base (RoPE100)")
            else:
                fields["rope_base"] = float(rope[1])
        elif option == "patch_embed_cls":
            if value not in _PATCH_EMBEDDINGS:
                complaints.append(f"patch_embed_cls {value!r} is not supported; expected one of {', '.join(_PATCH_EMBEDDINGS)}")
        elif option == "output_mode":
            # MASt3R's pts3d+desc24 belongs to its own head, which is set aside as a whole.
            if value != "pts3d" and options.get("head_type", "linear") in HEAD_TYPES:
                complaints.append(f"output_mode {value!r} is not supported; expected pts3d")
        elif option == "norm_im2_in_dec":
            if value is not True:
                complaints.append(f"norm_im2_in_dec {value!r} is not supported; expected True")
        elif option not in _IGNORED:
            complaints.append(f"option {option!r} (= {value!r}) is not known to this implementation")
    if complaints:
        raise UserError("backbone config: " + "; ".join(complaints))
    return cls(**fields)


def _is_count(value: Any) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value > 0


def _mode(value: Any) -> Mode:
    name, low, high = value
    return (str(name), float(low), float(high))
