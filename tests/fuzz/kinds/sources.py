"""Checkpoints to convert: config, headers, indices, model card, mapping file, the call in a pickle, pickles."""

import argparse
import contextlib
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path

from tests.conversion import args_string
from tests.fuzz.contract import Files, Kind
from tests.fuzz.kinds import material
from tests.make_checkpoint import save_hub_folder

_SHARD = "{}-00001-of-00001.{}"


def plan(place: Path, mapping: Path | None = None) -> str:
    """What `python -m convert --inspect` does with a source: all of a conversion but its tensors."""
    from und3rstand_jax.convert.options import HubAccess, ProbeOptions
    from und3rstand_jax.convert.planning import open_plan

    with open_plan(str(place), None, HubAccess(offline=True), ProbeOptions(mapping=mapping), progress=False) as planned:
        return str(planned)


def _folder() -> Sequence[Files]:
    return [material.source()]


@functools.cache
def _sharded(base: str, suffix: str, library: str) -> Files:
    """The source with an index before its tensors, as safetensors or as a pickle."""
    files = dict(material.source())
    tensors = material.backbone_tensors() | material.probe_tensors()
    shard = _SHARD.format(base, suffix)
    held = files.pop("model.safetensors")
    files[shard] = held if library == "safetensors" else _pickle(tensors, zipped=True)
    index = {"metadata": {"total_size": len(held)}, "weight_map": dict.fromkeys(tensors, shard)}
    return files | {f"{base}.{suffix}.index.json": json.dumps(index).encode()}


def _safetensors_index() -> Sequence[Files]:
    return [_sharded("model", "safetensors", "safetensors")]


def _pytorch_index() -> Sequence[Files]:
    return [_sharded("pytorch_model", "bin", "torch")]


def _headers() -> Sequence[Files]:
    return [material.made(lambda folder: save_hub_folder(folder, material.backbone_tensors(), material.CONFIG))]


@functools.cache
def _cards() -> Sequence[Files]:
    probes = material.made(lambda folder: save_hub_folder(folder / "probes", material.probe_tensors(), {"activation": "gelu"}))
    backbone = material.made(lambda folder: save_hub_folder(folder / "backbone", material.backbone_tensors(), material.CONFIG))
    card = "---\nlicense: mit\nbase_model:\n- backbone/model.safetensors\ntags: [a, b]\nmodel-index: []\n---\n# Probes\n"
    named = {"probes/config.json": b'{"activation": "gelu", "base_model": "../backbone"}'}
    return [probes | backbone | named | {"probes/README.md": card.encode()}, probes | backbone | {"probes/README.md": card.encode()}]


def _plan_with_card(folder: Path) -> object:
    with contextlib.chdir(folder / "probes"):  # what a card names may be beside it
        return plan(folder / "probes")


@functools.cache
def _mappings() -> Sequence[Files]:
    mapping = {
        "layers": {layer: f"probes.{number}.mlp" for number, layer in enumerate(material.LAYERS)},
        "steps": ["linear", *["activation", "linear"] * 4],
        "unused": [],
        "activation": "relu",
        "norm": "layernorm",
        "norm_epsilon": 1e-6,
        "residual": False,
        "output_layout": "channels_last",
        "depth_mode": ["exp", "-inf", "inf"],
        "conf_mode": ["exp", 1, "inf"],
    }
    return [material.source() | {"mapping.json": json.dumps(mapping).encode()}]


def _plan_mapped(folder: Path) -> object:
    return plan(folder, folder / "mapping.json")


def _pickle(tensors: object, zipped: bool) -> bytes:
    import torch

    assert isinstance(tensors, dict)
    stream = io.BytesIO()
    model = {name: torch.as_tensor(value) for name, value in tensors.items()}
    held = {"args": argparse.Namespace(model=args_string(material.CONFIG)), "model": model}
    torch.save(held, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@functools.cache
def _pickles() -> Sequence[Files]:
    import torch

    small = dict(list(material.backbone_tensors().items())[:3])
    # One stored number, seen a thousand million times.
    spread = small | {name: torch.zeros(1).expand(10**9) for name in ("a", "b")}
    whole = _pickle(material.backbone_tensors(), zipped=True)
    contents = (_pickle(held, zipped) for held in (small, spread) for zipped in (True, False))
    return [{"model.pth": content} for content in (whole, *contents)]


def _read_pickle(folder: Path) -> None:
    from und3rstand_jax.convert.sources.source import open_source

    opened = open_source(str(folder / "model.pth"), progress=False)
    with opened.tensors as tensors:
        for name in tensors:
            tensors.read(name)
    if isinstance(opened.tensors.args, str):
        _parse_call(opened.tensors.args)


def _calls() -> Sequence[Files]:
    return [{"call.txt": args_string(material.CONFIG).encode()}]


def _parse_call(text: str) -> object:
    from und3rstand_jax.model.families import config_of_options

    return config_of_options(text)


KINDS = (
    Kind("source config", _folder, plan, ("config.json",)),
    Kind("safetensors header", _headers, plan, ("model.safetensors",)),
    Kind("safetensors index", _safetensors_index, plan, ("*index.json",)),
    Kind("pytorch index", _pytorch_index, plan, ("*index.json",)),
    Kind("model card", _cards, _plan_with_card, ("probes/README.md",)),
    Kind("mapping file", _mappings, _plan_mapped, ("mapping.json",)),
    Kind("args.model", _calls, lambda folder: _parse_call((folder / "call.txt").read_bytes().decode("utf-8", "surrogateescape"))),
    Kind("pickle", _pickles, _read_pickle),
)
