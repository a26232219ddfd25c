"""The converted checkpoint: a folder with `config.json` and the Orbax trees `backbone/` and `probes/`.

`config.json` holds the configs of both parts and, for each, its provenance: the source and its revision, the SHA-256 of
every file, what was read, inferred or defaulted, and what an export back to PyTorch needs. Tensors that the model never
uses are kept in `backbone_unused/` for that way back.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.model.config import BackboneConfig, Mode
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.support.errors import UserError

CONFIG = "config.json"


FORMAT = "und3rstand_jax checkpoint"


VERSION = 1


PARTS = ("backbone", "probes")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a converted checkpoint says of itself. A part it does not hold is None.

    `provenance` has an entry for each part held; see `und3rstand_jax.convert.provenance` for what the converter writes there.
    """

    backbone: BackboneConfig | None = None
    probes: ProbeConfig | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def has_backbone(self) -> bool:
        """Whether there is a tree `backbone/`."""
        return self.backbone is not None

    @property
    def has_probes(self) -> bool:
        """Whether there is a tree `probes/`."""
        return self.probes is not None

    @property
    def probed_layers(self) -> tuple[str, ...]:
        """The layers that have a probe, in network order."""
        return self.probes.layer_ids if self.probes else ()


def is_checkpoint(folder: Path | str) -> bool:
    """Whether a folder is a converted checkpoint (of any version)."""
    file = Path(folder) / CONFIG
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_text())
    except ValueError:  # somebody else's config.json
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_checkpoint_info(folder: Path | str) -> CheckpointInfo:
    """Reads `config.json` of a converted checkpoint.

    Raises:
        UserError: the folder is no converted checkpoint, or one of a newer format.
    """
    folder = Path(folder)
    if not is_checkpoint(folder):
        raise UserError(f"{folder} is no converted checkpoint (no {CONFIG} that says {FORMAT!r}); make one with python -m convert")
    content = json.loads((folder / CONFIG).read_text())
    if content.get("version") != VERSION:
        raise UserError(f"{folder} has format version {content.get('version')}; this program reads {VERSION}: update it, or convert again")
    try:
        backbone, probes, provenance = content["backbone"], content["probes"], content["provenance"]
        info = CheckpointInfo(
            backbone=BackboneConfig(**_with_tuples(backbone)) if backbone else None,
            probes=_probe_config(probes) if probes else None,
            provenance={part: dict(provenance[part]) for part, held in (("backbone", backbone), ("probes", probes)) if held},
        )
    # Whatever was done to the file by hand shows in one of these.
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); convert again") from error
    if not (backbone or probes):
        raise UserError(f"{folder} holds neither a backbone nor probes; convert again")
    return info


def write_checkpoint_info(folder: Path, info: CheckpointInfo) -> None:
    """Writes `config.json`; infinities become strings, which strict JSON has no number for."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "layers": list(info.probed_layers),
        "backbone": dataclasses.asdict(info.backbone) if info.backbone else None,
        "probes": dataclasses.asdict(info.probes) if info.probes else None,
        "provenance": dict(info.provenance),
    }
    (folder / CONFIG).write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _probe_config(content: dict[str, Any]) -> ProbeConfig:
    fields = _with_tuples({**content, "groups": ()})
    groups = tuple(ProbeGroup(**{key: tuple(value) for key, value in group.items()}) for group in content["groups"])
    return ProbeConfig(**{**fields, "groups": groups})


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that frozen configs hold, bounds as numbers."""
    return {
        key: _mode(value) if key.endswith("_mode") else tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }


def _mode(value: list[Any]) -> Mode:
    return (value[0], float(value[1]), float(value[2]))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def unused_file(folder: Path, part: str) -> Path:
    """Where a converted checkpoint keeps the source tensors that its model never reads."""
    return folder / f"{part}_unused.safetensors"
