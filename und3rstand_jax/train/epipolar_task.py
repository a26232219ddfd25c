"""Training epipolar probes on a frozen backbone; see `und3rstand_jax.train.kept_task`."""

import dataclasses

from und3rstand_jax.data.records import Shape
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.epipolar import EpipolarConfig, epipolar_config
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.kept_task import KeptTask
from und3rstand_jax.train.step.epipolar_step import EpipolarReading


@dataclasses.dataclass(frozen=True)
class EpipolarTask(KeptTask):
    """See `KeptTask`; it keeps averaged tokens and true correspondences, and its errors are distances to epipolar lines in pixels."""

    NAME = "epipolar"
    KEPT = "places"

    options: EpipolarOptions
    reading: EpipolarReading

    @classmethod
    def reading_of(cls, options: EpipolarOptions, backbone: ModelConfig, size: Shape) -> EpipolarReading:
        """See `KeptTask`."""
        if options.views != 2:
            raise OptionError(f"epipolar probes are trained on pairs, whose fundamental matrix they read; found {options.views} views")
        assert options.layers is not None, "options are completed"
        layers = select_layers(options.layers, backbone.layer_ids)
        return EpipolarReading(epipolar_config(backbone, layers, options.hidden), options.correspondences, size)

    @classmethod
    def default_layers(cls, backbone: ModelConfig) -> str:
        """All stacks of the part in which views meet."""
        later = backbone.layer_ids[backbone.layer_ids.index(backbone.embed) :]
        return ",".join(dict.fromkeys(f"{layer.split('.')[0]}.*" for layer in later))

    @property
    def probes(self) -> EpipolarConfig:
        """The rows."""
        return self.reading.config
