"""Training pose probes on the camera tokens of a frozen backbone; see `und3rstand_jax.train.kept_task`."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from und3rstand_jax.analysis.evaluation_files import METRICS, TABLE
from und3rstand_jax.analysis.studies.study import mean_of
from und3rstand_jax.checkpoint.format import read_checkpoint_info
from und3rstand_jax.convert.model_card import results_card
from und3rstand_jax.convert.sources.layout import CARD
from und3rstand_jax.data.loader import Sources
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.layer_ids import select_layers
from und3rstand_jax.probes.pose import pose_config
from und3rstand_jax.support.files import fresh_file, replace_text
from und3rstand_jax.support.text import printable, text_table, to_json
from und3rstand_jax.train.card import pose_results
from und3rstand_jax.train.config_file import option_values
from und3rstand_jax.train.kept_options import PoseOptions
from und3rstand_jax.train.kept_task import KeptTask
from und3rstand_jax.train.step.kept_step import KeptState, kept_errors
from und3rstand_jax.train.step.pose_step import MEASURES, PoseReading

_MEANING = {
    "rotation": "angle in degrees of the rotation between the predicted camera and the true one",
    "translation": "angle in degrees between the directions of their translations; none where a camera is at view 1's position",
    "field_of_view": "difference of their fields of view in degrees, mean of the vertical and the horizontal one",
    "constant": "one camera for all, trained in the same way: it reads no token",
}


_WHAT = "Linear probes that read each view's camera from its camera token, one for each layer (`pose/`)."


@dataclasses.dataclass(frozen=True)
class PoseTask(KeptTask):
    """See `KeptTask`; it keeps camera tokens and true cameras, and its errors are angles."""

    NAME = "pose"
    KEPT = "poses"

    options: PoseOptions
    reading: PoseReading

    @classmethod
    def reading_of(cls, options: PoseOptions, backbone: ModelConfig, size: Shape) -> PoseReading:
        """See `KeptTask`."""
        return PoseReading(pose_config(backbone, select_layers(options.layers, backbone.layer_ids)), backbone)

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of three angles, each a mean over the views after the first."""
        return MEASURES

    def done(self) -> str | None:
        """A line that says where the results are, if the run is finished."""
        out = self.options.out
        if self.finished() is None or not all((out / name).is_file() for name in (METRICS, TABLE)):
            return None
        return printable(f"{out} is finished already: {out / self.NAME}, {out / TABLE}")

    def finish(self, state: KeptState, step: int, val_sources: Sources) -> str:
        """Writes the probes' parameters, their errors on the held-out sets in `metrics.json` and `layers.csv`, and their card."""
        out, options = self.options.out, self.options
        val = self.kept.val
        count = val.truth[-1].shape[0]
        everything = Batch(jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.int32), None)
        errors = self.by_row(jax.device_get(kept_errors(jax.tree.map(jnp.asarray, state.params), val, everything, reading=self.reading)))
        means = {layer: [mean_of(np.asarray(of_sets)[:, i]) for i in range(len(MEASURES))] for layer, of_sets in errors.items()}
        with fresh_file(out / TABLE) as file:
            writer = csv.writer(file)
            writer.writerow(["layer", *(f"{name}{what}" for name in MEASURES for what in ("", "_error"))])
            for layer, row in means.items():
                writer.writerow([layer, *(repr(float(value)) if np.isfinite(value) else "" for mean in row for value in mean)])
        found = {layer: {name: mean._asdict() for name, mean in zip(MEASURES, row, strict=True)} for layer, row in means.items()}
        replace_text(out / METRICS, to_json({"step": step, "options": option_values(options), "layers": found, "meaning": _MEANING}))
        results = pose_results(options, step, means, count)
        assert self.source is not None
        replace_text(out / CARD, results_card(out.resolve().name, _WHAT, results, read_checkpoint_info(self.source)))
        lines = [text_table(results["head"], results["rows"], numbers_from=1), results["note"], super().finish(state, step, val_sources)]
        return "\n".join([*lines, *map(printable, (f"card:  {out / CARD}", f"table: {out / TABLE}"))])
