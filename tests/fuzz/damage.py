"""Inputs from seeds: one file of a seed is damaged in the way that suits what it holds."""

import fnmatch
import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import yaml

from tests.fuzz.contract import Files, Kind
from tests.fuzz.documents import damaged_text, damaged_tree, to_json
from tests.fuzz.octets import damaged_bytes, opened

_JSON = (".json", ".zarray", "_METADATA", "_sharding", "metadata")
_LINES = (".jsonl",)
_YAML = (".yaml", ".yml")
_CARD = (".md",)
_TEXT = (".txt", ".py")


def inputs_of(kind: Kind, seeds: tuple[Files, ...]) -> st.SearchStrategy[Files]:
    """The strategy for inputs of a kind, given its seeds."""
    return kind.inputs() if kind.inputs is not None else spoilt(seeds, kind.damaged)


@st.composite
def spoilt(draw: Callable[..., Any], seeds: tuple[Files, ...], patterns: tuple[str, ...]) -> Files:
    """A seed with one of its files damaged."""
    files = draw(st.sampled_from(seeds))
    names = sorted(name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in patterns))
    name = draw(st.sampled_from(names))
    return files | {name: draw(damaged(name, files[name]))}


@st.composite
def damaged(draw: Callable[..., Any], name: str, content: bytes) -> bytes:
    """The content of a file, damaged as bytes now and then, and mostly as what its name or its first bytes say that it is."""
    if not draw(st.integers(0, 4)):
        return draw(damaged_bytes(content))
    container = opened(content)
    if container is not None:
        parts, pack = container
        part = draw(st.sampled_from(sorted(parts)))
        return pack(parts | {part: draw(damaged(part, parts[part]))})
    try:
        text = content.decode()
        if name.endswith(_JSON):
            return draw(damaged_text(to_json(draw(damaged_tree(json.loads(text))))))
        if name.endswith(_LINES):
            lines = text.splitlines()
            number = draw(st.integers(0, len(lines) - 1))
            lines[number] = to_json(draw(damaged_tree(json.loads(lines[number]))))
            return draw(damaged_text("\n".join(lines) + "\n"))
        if name.endswith(_YAML):
            return draw(damaged_text(to_json(draw(damaged_tree(yaml.safe_load(text), yaml=True)))))
        if name.endswith(_CARD):
            header, prose = text.removeprefix("---\n").split("---\n", 1)
            tree = to_json(draw(damaged_tree(yaml.safe_load(header), yaml=True)))
            return draw(damaged_text(f"---\n{tree}\n---\n{prose}"))
        if name.endswith(_TEXT):
            return draw(damaged_text(draw(damaged_words(text))))
    except (ValueError, yaml.YAMLError):
        pass  # a seed that is hard already
    return draw(damaged_bytes(content))


_TOKENS = "0 -1 1e400 nan inf -inf 0.5 1j ² ٣ b'x' None True lambda:0 __import__('os') f'{1}' **x *x [! [a- ..."
_LETTERS = " ,:*=-/~()[]{}x×'\"\\#;?\0\n\r\t\u2028\u202e\ud800"
_PIECES = (*_TOKENS.split(), *_LETTERS, "", "\x1b[2J", "9" * 30, "1" * 5000, "(" * 10_000, "-" * 20_000, "a" * 10_000)


@st.composite
def damaged_words(draw: Callable[..., Any], text: str) -> str:
    """A text with one to three pieces of it removed, repeated, or replaced by something that its grammar may not expect."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.sampled_from((0, 1, 1, 2, 5, 20)))
        piece = draw(st.sampled_from(_PIECES) | st.text(max_size=5) | st.just(text[at:end] * 2) | st.integers().map(str))
        text = text[:at] + piece + text[end:]
    return text
