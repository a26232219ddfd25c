"""The two formats that checkpoints come in: safetensors files, and PyTorch pickles (`.pth`, `.pt`, `.bin`).

A pickle is a program. `torch.load(weights_only=True)` interprets the few instructions that build tensors and containers, and refuses
every name that is not on its list; the only name added to it here is `argparse.Namespace`, in which DUSt3R keeps its arguments.
"""

import argparse
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo, first_bytes, reading
from und3rstand_jax.support.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The header's dtypes -> NumPy's names for them."""

_ZIP_MAGIC = b"PK\x03\x04"
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
_MAPPED_BYTES = 128 * 2**20
"""How much is read through one memory map before it is replaced: its pages count as resident memory while it lives."""


class SafetensorsFiles(TensorFiles):
    """Tensors of safetensors files that are the shards of one checkpoint.

    Values are fetched with positioned reads, not through a memory map: a map's pages count as resident memory until the file is
    closed, so a whole conversion would hold the source a second time. Both ways measured the same speed.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Opens all files and reads their headers.

        Args:
            files: the shards.
            weight_map: tensor name -> file name, where an index states it; it must agree with the shards.

        Raises:
            CheckpointError: a file is not a complete safetensors file, a name appears twice, or the index disagrees.
        """
        self._stack = ExitStack()
        self._homes: dict[str, tuple[Any, Path]] = {}
        table: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        twice = []
        try:
            for path in files:
                handle = self._stack.enter_context(_open(path))
                metadata |= handle.metadata() or {}
                for name in handle.offset_keys():
                    if name in table:
                        twice.append(f"{name} in {self._homes[name][1].name} and {path.name}")
                    header = handle.get_slice(name)
                    dtype = header.get_dtype()
                    table[name] = TensorInfo(tuple(header.get_shape()), _DTYPES.get(dtype, dtype.lower()))
                    self._homes[name] = (handle, path)
            if twice:
                raise CheckpointError(
                    f"names that appear in two files: {'; '.join(twice)}; give one of the files, or the folder with its index"
                )
            if weight_map is not None:
                found = {name: path.name for name, (_, path) in self._homes.items()}
                faults = [
                    f"{name} should be in {file} and is {f'in {found[name]}' if name in found else 'in no shard'}"
                    for name, file in weight_map.items()
                    if found.get(name) != file
                ]
                faults += [f"{name} is in {file} and not in the index" for name, file in found.items() if name not in weight_map]
                if faults:
                    raise CheckpointError(
                        f"index and shards disagree: {'; '.join(faults)}; copy or download index and shards again together"
                    )
        except CheckpointError:
            self.close()
            raise
        super().__init__(table, tuple(files), metadata=metadata)

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes  # noqa: F401 (its import makes numpy know the name bfloat16, which safetensors looks up)

        handle, path = self._homes[name]
        try:
            with reading(path):
                return handle.get_tensor(name)
        except (AttributeError, TypeError) as error:
            dtype = self[name].dtype
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype}, which cannot be read here; save it as float32, float16 or bfloat16"
            ) from error

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._homes = {}
        self._stack.close()


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    first_bytes(path)
    try:
        with reading(path):
            return safe_open(path, framework="numpy", backend="pread")
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error} ({size} bytes); truncated, or another format; copy or download it again"
        ) from error


class PickleFile(TensorFiles):
    """Tensors of one PyTorch file: the dict under "model" or "state_dict", or the file's dict itself; the rest is ignored.

    A file in the zip format (every `torch.save` since 1.6) is memory-mapped, `read` copies out of the map, and the map is replaced every
    128 MiB, so little of the file stays resident. A file in the older format has to be loaded whole, and stays in memory until `close`.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            CheckpointError: torch is not installed, the pickle refers to more than tensors, containers and Namespace, or it is not a
                checkpoint.
        """
        self._path = path
        self._mapped = first_bytes(path).startswith(_ZIP_MAGIC)
        self._read_bytes = 0
        checkpoint = _load(path, mmap=self._mapped)
        self._tensors = _state_dict(checkpoint, path)
        table = {name: TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in self._tensors.items()}
        # DUSt3R's call as a string, which is only ever parsed, or CroCo's options.
        args, croco = checkpoint.get("args"), checkpoint.get("croco_kwargs")
        if isinstance(args, argparse.Namespace) and isinstance(getattr(args, "model", None), str):
            stated = args.model
        else:
            stated = croco if isinstance(croco, dict) else None
        super().__init__(table, (path,), args=stated)

    def read(self, name: str) -> np.ndarray:  # noqa: D102 (documented by the base class)
        import ml_dtypes
        import torch

        if self._mapped and self._read_bytes >= _MAPPED_BYTES:
            self._tensors = {}
            self._tensors = _state_dict(_load(self._path, mmap=True), self._path)
            self._read_bytes = 0
        tensor = self._tensors[name].detach()
        self._read_bytes += tensor.nbytes
        if tensor.dtype == torch.bfloat16:
            return np.array(tensor.view(torch.int16).numpy(), order="C").view(ml_dtypes.bfloat16)
        try:
            return np.array(tensor.numpy(), order="C")
        except TypeError as error:
            raise CheckpointError(
                f"{self._path}: {name} has dtype {self[name].dtype}, which cannot be read here; save it as float32, float16 or bfloat16"
            ) from error

    def close(self) -> None:  # noqa: D102 (documented by the base class)
        self._tensors = {}


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path.name} is a PyTorch file and torch is not installed; run pip install 'und3rstand_jax[torch]'"
        ) from error
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
                f"{path} was refused and nothing in it was run: its pickle refers to {refused[1]}, and only tensors, containers and "
                "argparse.Namespace are allowed; get it from its authors as .safetensors, or save its state dict alone"
            ) from error
        # torch wraps what is wrong in advice to load without its restrictions, which must not be passed on.
        reason = str(error.__context__ or error).partition("\n")[0][:120] or "it ends too early"
        raise CheckpointError(
            f"{path} is not a complete PyTorch checkpoint ({type(error).__name__}: {reason}); it is cut short or something else; "
            "copy or download it again"
        ) from error


def _state_dict(checkpoint: Any, path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(checkpoint).__name__}, expected a state dict, or a dict with one under model or state_dict"
        )
    nested = [checkpoint[key] for key in ("model", "state_dict") if isinstance(checkpoint.get(key), Mapping)]
    state = nested[0] if nested else checkpoint
    wrong = [
        f"{name!r} ({type(value).__name__})"
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu")
    ]
    if wrong or not state:
        found = f"{len(wrong)} of {len(state)} entries are something else: {', '.join(wrong[:5])}" if wrong else "it is empty"
        raise CheckpointError(f"{path}: expected a state dict (name -> dense tensor), itself or under model or state_dict; {found}")
    return dict(state)
