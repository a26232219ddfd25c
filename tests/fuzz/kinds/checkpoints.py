"""Converted checkpoints: their config, their trees, and all of them where they are loaded, exported or built upon."""

import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.contract import Files, Kind
from tests.fuzz.kinds import material

_CONFIG = "checkpoint/config.json"


def _config_seeds() -> Sequence[Files]:
    config = json.loads(material.converted()[_CONFIG])
    slim = config | {"provenance": {part: {"source": "x", "leaves": []} for part in config["provenance"]}}
    deep = slim | {"backbone": config["backbone"] | {"dec_depth": 10**9}}
    return [{"config.json": json.dumps(variant).encode()} for variant in (config, slim, deep)]


def _read_config(folder: Path) -> None:
    from und3rstand_jax.checkpoint.format import read_checkpoint_info, sealed

    # With a digest that fits: what nobody damaged, but somebody wrote.
    file = folder / "config.json"
    with contextlib.suppress(UnicodeDecodeError):
        file.write_bytes(sealed(file.read_bytes().decode()).encode())
    info = read_checkpoint_info(folder)
    if info.backbone is not None:
        assert info.backbone.layer_ids
        info.backbone.to_hub_config()
    assert info.probes is None or info.probed_layers


@functools.cache
def _tree_seeds() -> Sequence[Files]:
    """Without digests, as format version 1 was, so that what is damaged in a tree reaches whoever decodes it."""
    files = material.converted()
    config = json.loads(files[_CONFIG])
    files = files | {_CONFIG: json.dumps({key: value for key, value in (config | {"version": 1}).items() if key != "digests"}).encode()}
    name = next(name for name in files if name.endswith("kernel/.zarray"))
    array = json.loads(files[name])
    # Chunks that are not there would count as zeros: a few bytes that stand for gigabytes.
    huge = array | {"shape": [10**6, 10**3], "chunks": [10**6, 10**3]}
    return [files, files | {name: json.dumps(huge).encode()}, files | {name: json.dumps(array | {"shape": [10**15, 3]}).encode()}]


def _read_tree(folder: Path) -> object:
    from und3rstand_jax.checkpoint.format import read_checkpoint_info
    from und3rstand_jax.checkpoint.parts import read_part
    from und3rstand_jax.checkpoint.trees import flatten

    info = read_checkpoint_info(folder / "checkpoint")
    trees = [flatten(read_part(folder / "checkpoint", info, part)) for part in info.parts]
    return [leaf.sum() for tree in trees for leaf in tree.values()]


def _check(folder: Path) -> None:
    from und3rstand_jax.checkpoint.check import check_checkpoint
    from und3rstand_jax.support.errors import CheckpointError

    whole, faults = check_checkpoint(folder / "checkpoint")
    if faults:
        raise CheckpointError(*faults[:3])
    assert whole


def _load(folder: Path) -> object:
    from und3rstand_jax.loading import load_backbone_and_probe

    return load_backbone_and_probe(folder / "checkpoint", offline=True, progress=False)


def _export(folder: Path) -> object:
    from und3rstand_jax.convert.export import export_checkpoint

    return export_checkpoint(folder / "checkpoint", folder / "exported")


def _build_upon(folder: Path) -> None:
    """Converts probes whose backbone is the checkpoint."""
    from und3rstand_jax.convert.options import HubAccess, ProbeOptions
    from und3rstand_jax.convert.planning import open_plan
    from und3rstand_jax.convert.writing import convert

    with open_plan(str(folder / "probes"), str(folder / "checkpoint"), HubAccess(offline=True), ProbeOptions(), progress=False) as plan:
        convert(plan, folder / "out", progress=False)


def _whole() -> Sequence[Files]:
    return [material.converted()]


@functools.cache
def _with_probes() -> Sequence[Files]:
    from tests.make_checkpoint import save_hub_folder

    probes = material.made(lambda folder: save_hub_folder(folder / "probes", material.probe_tensors(), {"activation": "gelu"}))
    return [material.converted() | probes]


KINDS = (
    Kind("converted config", _config_seeds, _read_config),
    Kind("orbax tree", _tree_seeds, _read_tree, ("checkpoint/backbone/*", "checkpoint/probes/*")),
    Kind("converted checkpoint, checked", _whole, _check),
    Kind("converted checkpoint, loaded", _whole, _load),
    Kind("converted checkpoint, exported", _whole, _export, (_CONFIG, "*unused*")),
    Kind("converted checkpoint, built upon", _with_probes, _build_upon, ("checkpoint/*",)),
)
