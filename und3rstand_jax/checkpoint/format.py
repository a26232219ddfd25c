"""The converted checkpoint: a folder with `config.json` and the Orbax trees `backbone/` and `probes/`.

`config.json` holds the configs of both parts and, for each, its provenance: the source and its revision, the SHA-256 of
every file, what was read, inferred or defaulted, and what an export to PyTorch needs. Tensors that the model never
uses are kept in `backbone_unused.safetensors` for the export.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.model.config import OUTPUT_MODES, BackboneConfig, parse_mode
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.results import ResultKind, files_in
from und3rstand_jax.support.text import to_json

CONFIG = "config.json"
FORMAT = "und3rstand_jax checkpoint"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """The contents of a converted checkpoint's `config.json`.

    Attributes:
        backbone: the config of the tree `backbone/`, None without one.
        probes: the config of the tree `probes/`, None without one.
        provenance: "backbone" and "probes", where held -> the record of `und3rstand_jax.convert.parts`.
    """

    backbone: BackboneConfig | None = None
    probes: ProbeConfig | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts held, "backbone" first: each is a tree of that name and an entry of `provenance`."""
        return tuple(part for part in ("backbone", "probes") if getattr(self, part) is not None)

    @property
    def probed_layers(self) -> tuple[str, ...]:
        """The layers that have a probe, in network order."""
        return self.probes.layer_ids if self.probes else ()


def checkpoint_files(folder: Path) -> frozenset[str] | None:
    """The files of a converted checkpoint that are its own, relative to its folder; None where there is none."""
    if not is_checkpoint(folder):
        return None
    content = read_json(folder / CONFIG, dict[str, Any], CheckpointError)
    if isinstance(files := content.get("files"), list):
        return frozenset((*map(str, files), CONFIG))
    # Version 1 lists none: both trees, and what is kept beside them.
    parts = ("backbone", "probes")
    kept = [CONFIG, *(unused_file(folder, part).name for part in parts)]
    return frozenset(file for file in files_in(folder) if file in kept or file.startswith(tuple(f"{part}/" for part in parts)))


CHECKPOINT = ResultKind(CONFIG, checkpoint_files)


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
        CheckpointError: the folder is not a converted checkpoint, has a newer format, or its `config.json` is damaged.
    """
    folder = Path(folder)
    if not is_checkpoint(folder):
        raise CheckpointError(f"{folder} is not a converted checkpoint (no {CONFIG} that says {FORMAT!r}); make one with python -m convert")
    content = json.loads((folder / CONFIG).read_text())
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} has format version {content.get('version')}; this program reads {VERSION}: update it, or convert again"
        )
    try:
        backbone, probes, provenance = content["backbone"], content["probes"], content["provenance"]
        groups = tuple(ProbeGroup(**_with_tuples(group)) for group in probes["groups"]) if probes else ()
        info = CheckpointInfo(
            backbone=BackboneConfig(**_with_tuples(backbone)) if backbone else None,
            probes=ProbeConfig(**{**_with_tuples(probes), "groups": groups}) if probes else None,
            provenance={part: dict(provenance[part]) for part, held in (("backbone", backbone), ("probes", probes)) if held},
        )
    # Whatever was edited by hand shows in one of these.
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); convert again") from error
    if not info.parts:
        raise CheckpointError(f"{folder} holds neither a backbone nor probes; convert again")
    return info


def write_checkpoint_info(folder: Path, info: CheckpointInfo) -> None:
    """Writes `config.json`, as strict JSON: infinities become strings."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "layers": list(info.probed_layers),
        "backbone": dataclasses.asdict(info.backbone) if info.backbone else None,
        "probes": dataclasses.asdict(info.probes) if info.probes else None,
        "provenance": dict(info.provenance),
    }
    (folder / CONFIG).write_text(to_json(content))


def unused_file(folder: Path, part: str) -> Path:
    """Where a converted checkpoint keeps the source tensors that its model never reads."""
    return folder / f"{part}_unused.safetensors"


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that frozen configs hold, bounds as numbers."""
    return {
        key: parse_mode(key, value) if key in OUTPUT_MODES else tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
    }
