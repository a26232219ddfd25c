"""Damage to bytes, and to what containers of bytes (safetensors, zip, .npy, PNG) hold, with lengths and sums made to fit again."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st

from tests.fuzz.contract import Files

Pack = Callable[[Files], bytes]

_FIELDS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**32, 2**62, 2**63 - 1, 2**64 - 1)
_HEAD = 400  # bytes in which headers lie, and every second change
_LARGEST_UNPACKED = 2**22  # bytes of an archive that is taken apart


@st.composite
def damaged_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """One to four changes: bits flipped, numbers overwritten, spans removed, repeated, zeroed or moved, the end cut off."""
    held = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = len(held)
        at = draw(st.integers(0, min(end, _HEAD)) | st.integers(0, end))
        span = draw(st.sampled_from((1, 2, 4, 8, 64, 1024)))
        match draw(st.integers(0, 7)):
            case 0 | 1 if at < end:
                held[at] ^= 1 << draw(st.integers(0, 7))
            case 2 | 3:
                field = draw(st.sampled_from(_FIELDS))
                packed = struct.pack(field, draw(st.sampled_from(_ODD_NUMBERS)) % 256 ** struct.calcsize(field))
                held[at : at + len(packed)] = packed
            case 4:
                del held[at:]
            case 5:
                del held[at : at + span]
            case 6:
                held[at : at + span] = bytes(len(held[at : at + span]))
            case _:
                source = draw(st.integers(0, end))
                held[at:at] = held[source : source + span]
    return bytes(held)


def opened(content: bytes) -> tuple[Files, Pack] | None:
    """The parts of a container, named so that their own damage can be chosen, and how to put them together; None for other bytes."""
    if content.startswith(b"PK\x03\x04"):
        return _zip(content)
    if content.startswith(b"\x93NUMPY"):
        start, size = (10, 2) if content[6] == 1 else (12, 4)
        text, values = content[start:], content[start + int.from_bytes(content[8 : 8 + size], "little") :]
        return {"header.py": text[: len(text) - len(values)], "values": values}, _npy
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_chunks(content), _png
    length = int.from_bytes(content[:8], "little")
    if 2 <= length <= len(content) - 8 and content[8:9] == b"{":
        return {"header.json": content[8 : 8 + length], "values": content[8 + length :]}, _safetensors
    return None


def _safetensors(parts: Files) -> bytes:
    return len(parts["header.json"]).to_bytes(8, "little") + parts["header.json"] + parts["values"]


def _npy(parts: Files) -> bytes:
    return b"\x93NUMPY\x02\x00" + len(parts["header.py"]).to_bytes(4, "little") + parts["header.py"] + parts["values"]


def _zip(content: bytes) -> tuple[Files, Pack] | None:
    """None of an archive that unpacks to much: to pack it anew for every input would take all the time there is."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > _LARGEST_UNPACKED:
            return None
        kinds = {info.filename: info.compress_type for info in archive.infolist()}
        parts = {name: archive.read(name) for name in kinds}

    def pack(parts: Files) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part, kinds[name])
        return packed.getvalue()

    return parts, pack


def _png_chunks(content: bytes) -> Files:
    chunks, at = {}, 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks[f"{len(chunks)}.{content[at + 4 : at + 8].decode('latin-1')}"] = content[at + 8 : at + 8 + length]
        at += 12 + length
    return chunks


def _png(parts: Files) -> bytes:
    packed = b"\x89PNG\r\n\x1a\n"
    for name, part in parts.items():
        body = name.partition(".")[2].encode("latin-1") + part
        packed += struct.pack(">I", len(part)) + body + struct.pack(">I", zlib.crc32(body))
    return packed
