"""PyTorch's own files (`.pth`, `.pt`, `.ckpt`, `.bin`): pickles, which are programs, read without running them.

`torch.load(weights_only=True)` interprets the few instructions that build tensors and containers, and refuses every name that is not on
its list; the only name added to it here is `argparse.Namespace`, in which DUSt3R keeps its arguments. The size that a tensor claims is
compared with what the file holds before any of it is copied.
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo, first_bytes, merged, tensor_count
from und3rstand_jax.support.documents import checked
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.text import listed

if TYPE_CHECKING:
    import torch

STATE_KEYS = ("model", "state_dict", "model_state_dict")
"""Entries of a file that hold the weights, in the order in which they are tried."""

_ZIP_MAGIC = b"PK\x03\x04"
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
_MAPPED_BYTES = 128 * 2**20
"""Bytes read through one memory map before it is replaced: its pages count as resident memory while it exists."""
_MOST_SHARED = 4
"""How many times more bytes tensors may have than the storages they share: a weight may have a second name, but not hundreds."""


class PickleFiles(TensorFiles):
    """Tensors of PyTorch files that are the shards of one checkpoint; usually there is only one file.

    A file in the zip format (every `torch.save` since 1.6) is memory-mapped, `read` copies out of the map, and the map is replaced every
    128 MiB, so little of the file stays resident. A file in the older format has to be loaded whole, and stays in memory until `close`.

    Attributes:
        prefix: the rest of `key` after the entries that it names: the beginning of the names of the tensors to read.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None, key: str = "") -> None:
        """Opens the files.

        Args:
            files: the shards.
            weight_map: tensor name -> file name, if an index states it; it must agree with the shards.
            key: the entry that holds the weights, with dots between nested entries; by default the first of `STATE_KEYS` that exists,
                else the file's own dict.

        Raises:
            CheckpointError: torch is not installed, a pickle refers to more than tensors, containers and Namespace, it is not a
                checkpoint, or its tensors claim more bytes than it holds.
        """
        self._key = key
        self._mapped = {path: first_bytes(path).startswith(_ZIP_MAGIC) for path in files}
        self._states: dict[Path, dict[str, torch.Tensor]] = {}
        self._read_bytes = 0
        self.prefix, chosen, args = key, "", None
        ignored: dict[str, str] = {}
        tables = {}
        for path in files:
            checkpoint = _load(path, mmap=self._mapped[path])
            state, chosen, self.prefix = _choose(checkpoint, path, key)
            self._states[path] = _state_dict(state, chosen, checkpoint, path)
            tables[path] = {
                name: TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                for name, tensor in self._states[path].items()
            }
            args = args or _model_args(checkpoint, path)
            if chosen:
                ignored |= {str(name): _described(value) for name, value in checkpoint.items() if name != chosen.split(".")[0]}
        if args:  # they are read
            ignored = {name: what for name, what in ignored.items() if name not in ("args", "croco_kwargs")}
        table, self._homes = merged(tables, weight_map)
        super().__init__(table, tuple(files), args=args, chosen=chosen, ignored=ignored)

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes
        import torch

        if self._read_bytes >= _MAPPED_BYTES:
            self._states = {path: state for path, state in self._states.items() if not self._mapped[path]}
            self._read_bytes = 0
        path = self._homes[name]
        if path not in self._states:
            checkpoint = _load(path, mmap=True)
            state, chosen, _ = _choose(checkpoint, path, self._key)
            self._states[path] = _state_dict(state, chosen, checkpoint, path)
        tensor = self._states[path][name].detach()
        self._read_bytes += tensor.nbytes if self._mapped[path] else 0
        if tensor.dtype == torch.bfloat16:
            return np.array(tensor.view(torch.int16).numpy(), order="C").view(ml_dtypes.bfloat16)
        try:
            return np.array(tensor.numpy(), order="C")
        except TypeError as error:
            raise CheckpointError(
                f"{path}: {name} has dtype {self[name].dtype}, which cannot be read here; save it as float32, float16 or bfloat16"
            ) from error

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._states = {}


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path.name} is a PyTorch file and torch is not installed; run pip install 'und3rstand_jax[torch]'"
        ) from error
    if mmap:
        _check_archive(path)
    try:
        # torch warns about old storages and new pickle protocols; the file is read in full or refused, so neither concerns the user.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore", category=UserWarning):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: permission denied; check that you may read it") from error
    # The loader meets arbitrary bytes here and answers with almost any exception (KeyError, EOFError, RuntimeError, …).
    except Exception as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused:
            raise CheckpointError(
                f"{path} was refused and nothing in it was run: its pickle refers to {refused[1][:120]}, and only tensors, containers and "
                "argparse.Namespace are allowed; get it from its authors as .safetensors, or save its state dict alone"
            ) from error
        # torch wraps what is wrong in advice to load without its restrictions, which must not be passed on.
        reason = str(error.__context__ or error).partition("\n")[0][:120] or "it ends too early"
        raise CheckpointError(
            f"{path} is not a complete PyTorch checkpoint ({type(error).__name__}: {reason}); the file is truncated or in another format; "
            "copy or download it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses an archive that is a program, or whose parts are compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return  # the loader says what is wrong with it
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program with its weights inside; where it was made, save the weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path} has compressed parts ({listed(packed, most=3)}), as no PyTorch file does; unpack it and save it with torch.save"
        )


def _choose(checkpoint: Any, path: Path, key: str) -> tuple[Mapping[Any, Any], str, str]:
    """The dict that holds the weights, the entries that lead to it, and the part of `key` that names no entry."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(checkpoint).__name__}, expected a state dict, or a dict with one under {', '.join(STATE_KEYS)}"
        )
    found, entries, rest = checkpoint, list[str](), key
    while rest:
        # The longest entry first: names may hold dots themselves.
        parts = rest.split(".")
        candidates = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        entry = next((name for name in candidates if isinstance(found.get(name), Mapping)), None)
        if entry is None:
            break
        found, rest = found[entry], rest[len(entry) + 1 :]
        entries.append(entry)
    if not entries or not any(map(_is_tensor, found.values())):
        entry = next((name for name in STATE_KEYS if isinstance(found.get(name), Mapping)), None)
        if entry is not None:
            found = found[entry]
            entries.append(entry)
    return found, ".".join(entries), rest


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _described(value: object) -> str:
    """The type of an entry that is left out, or the number of tensors that it holds."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    count = sum(map(_is_tensor, value.values()))
    return tensor_count(count) if count else f"{type(value).__name__} of {len(value)}"


def _model_args(checkpoint: Mapping[Any, Any], path: Path) -> str | dict[str, Any] | None:
    """DUSt3R's call as a string, which is only ever parsed, or CroCo's options."""
    args, croco = checkpoint.get("args"), checkpoint.get("croco_kwargs")
    if isinstance(args, argparse.Namespace) and isinstance(getattr(args, "model", None), str):
        return args.model
    return checked(croco, f"{path}: croco_kwargs", dict[str, Any], CheckpointError) if isinstance(croco, dict) else None


def _state_dict(state: Mapping[Any, Any], chosen: str, checkpoint: Mapping[Any, Any], path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors, each checked to have all of its values in the file."""
    wrong = [f"{name!r} ({type(value).__name__})" for name, value in state.items() if not _is_usable(name, value)]
    if wrong or not state:
        found = f"{len(wrong)} of {len(state)} entries are something else: {listed(wrong, most=5)}" if wrong else "it is empty"
        other = [f"{name} ({_described(value)})" for name, value in checkpoint.items() if isinstance(value, Mapping) and name != chosen]
        remedy = f"; --key chooses another entry: {listed(other, most=5)}" if other else ""
        where = f"under {chosen}" if chosen else f"itself or under {', '.join(STATE_KEYS)}"
        raise CheckpointError(f"{path}: expected a state dict (name -> dense tensor), {where}; {found}{remedy}")
    storages: dict[int, int] = {}
    beyond = []
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes():
            beyond.append(f"{name} ({tensor.nbytes:,} bytes of values, {storage.nbytes():,} stored)")
    # Steps of zero repeat what is stored; so do views, of which any number may share one storage.
    total, stored = sum(tensor.nbytes for tensor in state.values()), sum(storages.values())
    if not beyond and total > _MOST_SHARED * stored:
        beyond = [f"{len(state):,} tensors ({total:,} bytes of values, {stored:,} stored)"]
    if beyond:
        raise CheckpointError(
            f"{path}: tensors larger than their stored data: {listed(beyond, most=5)}; if this is intended, save copies: "
            "{name: tensor.clone() for name, tensor in state.items()}"
        )
    return dict(state)


def _is_usable(name: object, value: Any) -> bool:
    """Whether an entry is a name that a header can hold, and a dense tensor in memory."""
    import torch

    if not (isinstance(name, str) and name != "__metadata__" and name.encode(errors="replace") == name.encode(errors="surrogatepass")):
        return False
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
