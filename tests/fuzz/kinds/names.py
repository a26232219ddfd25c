"""Tables of tensors under any names: what the converter makes of checkpoints that others have renamed, wrapped, cut or added to."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.fuzz.contract import Files, Kind
from tests.fuzz.kinds import material
from tests.fuzz.kinds.sources import plan

_PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "ema.", "backbone.", "net.probes.", "0.", "..", "/", "../")
_PARTS = (
    "probes probe decoder dec_blocks dec_blocks2 enc_blocks head mlp fc1 norm ln self_attn cross_attn view1 view2 weight bias "
    "0 1 01 -1 ² / .. lora_A pos_patch_embed.proj"
)
_WORDS = (*_PARTS.split(), "", "\x1b[31m", "\n", "\u202e", "a" * 1000, "9" * 20, "9" * 5000)
_DTYPES = ("float32", "float16", "float64", "int8", "int64", "bool")
_LARGEST = 100_000  # elements of a made-up tensor

_Table = dict[str, np.ndarray]


@st.composite
def _renamed(draw: Callable[..., Any], name: str) -> str:
    """A name with a part of it replaced, removed, added or moved."""
    parts = name.split(".")
    at = draw(st.integers(0, len(parts) - 1))
    match draw(st.integers(0, 3)):
        case 0:
            parts[at] = draw(st.sampled_from(_WORDS) | st.text(max_size=4))
        case 1:
            del parts[at]
        case 2:
            parts.insert(at, draw(st.sampled_from(_WORDS)))
        case _:
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
    return ".".join(parts)


@st.composite
def _tables(draw: Callable[..., Any]) -> Files:
    """A backbone with probes, or either, after one to four changes, as a folder in the hub's layout."""
    backbone, probes = material.backbone_tensors(), material.probe_tensors()
    table: _Table = draw(st.sampled_from((probes, backbone | probes, backbone)))
    for _ in range(draw(st.integers(1, 4))):
        names = sorted(table)
        if not names:
            break
        name = draw(st.sampled_from(names))
        held = table[name]
        match draw(st.integers(0, 8)):
            case 0:
                prefix = draw(st.sampled_from(_PREFIXES))
                table = {prefix + each: tensor for each, tensor in table.items()}
            case 1:
                old, new = draw(st.sampled_from(name.split("."))), draw(st.sampled_from(_WORDS) | st.text(max_size=4))
                table = {".".join(new if part == old else part for part in each.split(".")): tensor for each, tensor in table.items()}
            case 2 | 3:
                table = {each: tensor for each, tensor in table.items() if each != name} | {draw(_renamed(name)): held}
            case 4:
                table = {each: tensor for each, tensor in table.items() if each != name}
            case 5:
                prefix = draw(st.sampled_from(_PREFIXES))
                table = table | {prefix + each: tensor for each, tensor in table.items()}
            case 6:
                shape = draw(st.lists(st.sampled_from((0, 1, 3, 8, 16, 255, 768, 1024)), max_size=4))
                if math.prod(shape) <= _LARGEST:
                    table = table | {name: np.zeros(shape, draw(st.sampled_from(_DTYPES)))}
            case 7:
                table = table | {name: held.T}
            case _:
                count = draw(st.sampled_from((1, 10, 1000, 20_000)))
                table = table | {f"{draw(_renamed(name))}.{number}": np.zeros(1, np.float32) for number in range(count)}
    return _folder(table)


def _folder(table: _Table) -> Files:
    from safetensors.numpy import save

    tensors = {name.encode("utf-8", "replace").decode(): np.ascontiguousarray(tensor) for name, tensor in table.items()}
    return {"model.safetensors": save(tensors), "config.json": json.dumps(material.CONFIG).encode()}


def _seeds() -> Sequence[Files]:
    return [_folder(material.backbone_tensors() | material.probe_tensors())]


KINDS = (Kind("tensor names", _seeds, plan, inputs=_tables),)
