"""The converted checkpoint: a folder with `config.json` and the Orbax trees `backbone/` and `probes/`.

A tree may be a safetensors file instead, `backbone.safetensors` or `probes.safetensors`, as in checkpoints pushed to the hub: `files`
says which.

`config.json` holds the configs of both parts and, for each, its provenance: the source and its revision, the SHA-256 of every file, what
was read, inferred or defaulted, and what an export to PyTorch needs. It also holds a digest of every leaf and of itself, and the names
of all files of the checkpoint. Tensors that the model never uses are kept in `backbone_unused.safetensors` for the export.

Format version 1 has neither digests nor file names; it can still be read, but damage to its weights cannot be detected.
"""

import dataclasses
import functools
import hashlib
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from und3rstand_jax.checkpoint.content import Content, ContentOfVersion1, Versioned
from und3rstand_jax.checkpoint.links import check_link
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.families import FAMILIES, UNNAMED, Family, family_of
from und3rstand_jax.model.output_modes import Mode
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.support.documents import checked, parse_json, read_json, read_text
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.support.results import ResultKind, files_in
from und3rstand_jax.support.text import one_line, to_json

CONFIG = "config.json"
JAX = "jax"
"""The folder of a converted checkpoint beside the PyTorch layout of the same weights."""
FORMAT = "und3rstand_jax checkpoint"
VERSION = 2
REMEDY = "convert it again, or restore it from a copy"

ORBAX_FILES = r"_METADATA|_CHECKPOINT_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+"
"""Orbax's own files in the folder of a tree, besides those of its leaves."""

_OF_TREE = re.compile(rf"(backbone|probes)/({ORBAX_FILES}|[^/]+/(\.zarray|\d+(\.\d+)*))")

_DIGEST = re.compile(r'("digest": ")[^"]*"')

Digests = Mapping[str, Mapping[str, str]]
"""Part -> path of a leaf, or name of the part's `unused_file` -> SHA-256 in hexadecimal."""


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """The contents of a converted checkpoint's `config.json`.

    Attributes:
        backbone: the config of the tree `backbone/`, None without one.
        probes: the config of the tree `probes/`, None without one.
        provenance: "backbone" and "probes", if present -> the record of `und3rstand_jax.convert.parts`.
        digests: "backbone" and "probes", if present -> the digest of every leaf; None in a checkpoint of format version 1.
        files: the paths of all its files, relative to the folder; empty in format version 1.
    """

    backbone: ModelConfig | None = None
    probes: ProbeConfig | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    digests: Digests | None = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts present, "backbone" first: each is a tree of that name and an entry of `provenance`."""
        return tuple(part for part in ("backbone", "probes") if getattr(self, part) is not None)

    @property
    def probed_layers(self) -> tuple[str, ...]:
        """The layers that have a probe, in network order."""
        return self.probes.layer_ids if self.probes else ()


def checkpoint_files(folder: Path) -> frozenset[str] | None:
    """A converted checkpoint's own files, relative to its folder; None if the folder is not a converted checkpoint."""
    head = _head(folder)
    if head is None:
        return None
    if isinstance(files := head.get("files"), list):
        return frozenset((*map(str, files), CONFIG))
    # Version 1 lists none: these are what Orbax writes into both trees, and what is kept beside them.
    kept = [CONFIG, *(unused_file(folder, part).name for part in ("backbone", "probes"))]
    return frozenset(file for file in files_in(folder) if file in kept or _OF_TREE.fullmatch(file))


CHECKPOINT = ResultKind(CONFIG, checkpoint_files)


def is_checkpoint(folder: Path | str) -> bool:
    """Whether a folder is a converted checkpoint (of any version)."""
    return _head(Path(folder)) is not None


def _head(folder: Path) -> Versioned | None:
    """The fields of every version of `config.json`; None if the file is missing or is not of this format."""
    try:
        head = read_json(folder / CONFIG, Versioned, CheckpointError)
    except CheckpointError:
        return None
    return head if head["format"] == FORMAT else None


def read_checkpoint_info(folder: Path | str) -> CheckpointInfo:
    """Reads the `config.json` of a converted checkpoint.

    Raises:
        CheckpointError: the folder is not a converted checkpoint or has a newer format, or its `config.json` is damaged or links elsewhere.
    """
    folder = Path(folder)
    file = folder / CONFIG
    head = _head(folder)
    if head is None:
        raise CheckpointError(f"{folder} is not a converted checkpoint (no {CONFIG} that says {FORMAT!r}); make one with python -m convert")
    check_link(file, folder)
    version = head["version"]
    if version not in (1, VERSION):
        raise CheckpointError(f"{folder} has format version {version}; this program reads 1 and {VERSION}: update it, or convert again")
    text = read_text(file, CheckpointError, REMEDY)
    if version == VERSION and sealed(text) != text:
        raise CheckpointError(f"{file} differs from the digest in it; {REMEDY}")
    kind: type[Any] = Content if version == VERSION else ContentOfVersion1
    content = parse_json(text, str(file), kind, CheckpointError, REMEDY)
    backbone, probes = content["backbone"], content["probes"]
    held = [part for part, config in (("backbone", backbone), ("probes", probes)) if config]
    if not held:
        raise CheckpointError(f"{folder} holds neither a backbone nor probes; convert again")
    provenance, digests = content["provenance"], content.get("digests")
    for field, records in (("provenance", provenance), ("digests", digests)):
        absent = [part for part in held if records is not None and part not in records]
        if absent:
            raise CheckpointError(f"{file} has no {field} for its {absent[0]}; {REMEDY}")
    try:
        info = CheckpointInfo(
            backbone=_backbone(backbone, file) if backbone else None,
            probes=ProbeConfig(**{**_with_modes(probes, ProbeConfig), "groups": tuple(ProbeGroup(**group) for group in probes["groups"])})
            if probes
            else None,
            provenance={part: provenance[part] for part in held},
            digests=digests,
            files=tuple(content.get("files", ())),
        )
        _check_fit(info)
    # A value that no config can have: a size, a mode, a layer's name.
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{file} is damaged: {one_line(error)}; {REMEDY}") from error
    return info


def write_checkpoint_info(folder: Path, info: CheckpointInfo, files: Iterable[str] | None = None) -> None:
    """Writes `config.json` as strict JSON: infinities become strings. Written last, because it names all other files.

    Args:
        folder: the checkpoint.
        info: its contents, except for the files.
        files: the files to name, by default all that are there.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "digest": "0" * 64,
        "layers": list(info.probed_layers),
        "backbone": _backbone_fields(info.backbone) if info.backbone else None,
        "probes": dataclasses.asdict(info.probes) if info.probes else None,
        "provenance": dict(info.provenance),
        "digests": {part: dict(sorted((info.digests or {}).get(part, {}).items())) for part in info.parts},
        "files": sorted({*(files_in(folder) if files is None else files), CONFIG}),
    }
    replace_text(folder / CONFIG, sealed(to_json(content)))


def _backbone(stored: dict[str, Any], file: Path) -> ModelConfig:
    name = stored.get("family", UNNAMED.name)
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise CheckpointError(f"{file}: its backbone is of the family {name!r}, which this program does not know ({known}); update it")
    fields = checked({"backbone": stored}, str(file), _stored_by(family), CheckpointError, REMEDY)["backbone"]
    return family.config(**_with_modes(fields, family.config))


def _backbone_fields(config: ModelConfig) -> dict[str, Any]:
    """A config as it is stored."""
    family = family_of(config)
    return {**({} if family is UNNAMED else {"family": family.name}), **dataclasses.asdict(config)}


@functools.cache
def _stored_by(family: Family) -> Any:
    return TypedDict("Content", {"backbone": family.stored})  # type: ignore[operator]


def sealed(text: str) -> str:
    """The text of a `config.json` with its own digest: the SHA-256 of the text with zeros in the digest's place."""
    blank = _DIGEST.sub(f'\\g<1>{"0" * 64}"', text, count=1)
    return _DIGEST.sub(f'\\g<1>{hashlib.sha256(blank.encode()).hexdigest()}"', blank, count=1)


def tree_file(folder: Path, part: str) -> Path:
    """Where a converted checkpoint keeps a part's tree if that is one file."""
    return folder / f"{part}.safetensors"


def unused_file(folder: Path, part: str) -> Path:
    """Where a converted checkpoint keeps the source tensors that its model never reads."""
    return folder / f"{part}_unused.safetensors"


def _check_fit(info: CheckpointInfo) -> None:
    """Checks that the probes read layers of the backbone beside them, at the layers' width."""
    if info.backbone is None or info.probes is None:
        return
    known = frozenset(info.backbone.layer_ids)
    for group in info.probes.groups:
        for layer in group.layer_ids:
            if layer not in known or group.widths[0] != info.backbone.layer_width(layer):
                raise ValueError(f"the probe of {layer} reads {group.widths[0]} channels, which no layer of that name in the backbone has")


def _with_modes(fields: Any, config: type) -> dict[str, Any]:
    """The fields with the bounds of output modes as numbers; strict JSON has no number for infinity."""
    modes = {name for name, kind in typing.get_type_hints(config).items() if kind == Mode}
    return {key: (value[0], float(value[1]), float(value[2])) if key in modes else value for key, value in fields.items()}
