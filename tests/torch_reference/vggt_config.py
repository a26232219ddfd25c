"""VGGT's architecture as the golden cases describe it (`config`); the hub's config.json has only a part of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class DPTConfig(NamedTuple):
    """A DPT head: `intermediate_layer_idx` are the pairs of blocks that it reads."""

    output_dim: int
    activation: str
    features: int
    out_channels: tuple[int, ...]
    intermediate_layer_idx: tuple[int, ...]

    @classmethod
    def of_case(cls, config: Mapping[str, Any]) -> "DPTConfig":
        """From the `config` of a golden case."""
        assert config["conf_activation"] == "expp1"
        return cls(**{name: tuple(v) if isinstance(v := config[name], list) else v for name in cls._fields})


class VGGTConfig(NamedTuple):
    """The architecture. `img_size` is the side of the images that the stored position embedding is for."""

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    num_register_tokens: int
    encoder_depth: int
    encoder_heads: int
    camera_depth: int
    camera_heads: int
    camera_iterations: int
    depth_head: DPTConfig
    point_head: DPTConfig

    @classmethod
    def of_case(cls, config: Mapping[str, Any]) -> "VGGTConfig":
        """From the `config` of a golden case."""
        encoder, camera = config["encoder"], config["camera_head"]
        return cls(
            **{name: config[name] for name in cls._fields[:6]},
            encoder_depth=encoder["depth"],
            encoder_heads=encoder["num_heads"],
            camera_depth=camera["trunk_depth"],
            camera_heads=camera["num_heads"],
            camera_iterations=camera["num_iterations"],
            depth_head=DPTConfig.of_case(config["depth_head"]),
            point_head=DPTConfig.of_case(config["point_head"]),
        )

    @property
    def specials(self) -> int:
        """Tokens before a frame's patches."""
        return 1 + self.num_register_tokens

    @property
    def sites(self) -> tuple[str, ...]:
        """Everything that can be edited."""
        inside = [f"{step}.update" for step in self._steps]
        inside += [f"{step}.{part}" for step in self._steps if step.endswith("attn") for part in ("scores", "heads")]
        return ("patch_embed", "encoder.embed", "encoder.norm", "aggregator.embed", *self._steps, *inside)

    @property
    def weights(self) -> tuple[str, ...]:
        """The attention weights, which can be kept and not edited."""
        return tuple(f"{step}.weights" for step in self._steps if step.endswith("attn"))

    @property
    def _steps(self) -> list[str]:
        counts = {"encoder": self.encoder_depth, "frame": self.depth, "global": self.depth}
        return [f"{kind}.{i}.{step}" for kind, count in counts.items() for i in range(count) for step in ("self_attn", "mlp")]
