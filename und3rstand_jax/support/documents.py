"""Reads untrusted JSON, JSON lines and YAML: limited in size, checked against a type, each fault reported in one line with its place.

A document may come from the user, from a stranger, or from this program and have been edited or damaged since. A type describes what it
must contain: a dataclass, a TypedDict (from `typing_extensions`) or any other annotation that pydantic reads. Values are checked
strictly: "5" is not a number and true is not 1.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import listed, one_line, size_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

LARGEST = 64 * 2**20
"""The largest document, in bytes, unless its reader allows more. The configs and records of full-size models take less than one MiB."""

_FAULTS_SHOWN = 5
_DEEPEST = 100  # lists in lists of YAML

_LONE_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)

T = TypeVar("T")


def read_text(file: Path, error: type[UserError], remedy: str = "", largest: int = LARGEST) -> str:
    """The text of a file, UTF-8 with or without a byte order mark.

    Args:
        file: a regular file: a pipe or a device would never end.
        error: the class of exception to raise.
        remedy: what the user should do, appended to messages.
        largest: the largest size accepted, in bytes.

    Raises:
        UserError: of the class `error`: the file is missing, unreadable, too large, or not UTF-8.
    """
    try:
        with open_regular(file) as stream:
            # Asked for all at once, `largest` would be allocated.
            content = stream.read(min(largest, os.fstat(stream.fileno()).st_size) + 1)
    except OSError as failure:
        raise error(_message(file, f"cannot be read: {(failure.strerror or str(failure)).lower()}", remedy)) from failure
    if len(content) > largest:
        raise error(_message(file, f"is larger than {size_text(largest)}, too much for a file of its kind", remedy))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(_message(file, f"is not UTF-8 text: byte {failure.start} is 0x{content[failure.start]:02x}", remedy)) from failure


def read_json(file: Path, kind: Callable[..., T] | UnionType, error: type[UserError], remedy: str = "", largest: int = LARGEST) -> T:
    """The JSON document in a file, checked against `kind`; bare NaN and Infinity, which DUSt3R's configs contain, are numbers.

    Arguments and errors are those of `read_text`; `error` is also raised for text that is not JSON or does not match `kind`.
    """
    return parse_json(read_text(file, error, remedy, largest), str(file), kind, error, remedy)


def parse_json(text: str, name: str, kind: Callable[..., T] | UnionType, error: type[UserError], remedy: str = "") -> T:
    """A JSON document checked against `kind`; messages call it `name`.

    Raises:
        UserError: of the class `error`: the text is not JSON or does not match `kind`; up to five faults are listed.
    """
    from pydantic import ValidationError

    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        if _LONE_SURROGATE.search(text):
            text = _escaped_surrogates(text)
        return adapter.validate_json(text, strict=True)
    except ValidationError as failure:
        raise error(_message(name, _faults(failure), remedy)) from failure
    except (ValueError, RecursionError) as failure:  # what the type's own __post_init__ raises, or text that is not Unicode
        raise error(_message(name, f"cannot be used: {one_line(failure)}", remedy)) from failure


def _escaped_surrogates(text: str) -> str:
    """JSON with its lone surrogates escaped as text: this program records non-UTF-8 bytes of file names as lone surrogates."""
    import json

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {escaped(key): escaped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [escaped(item) for item in value]
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    return json.dumps(escaped(json.loads(text)))


def checked(value: object, name: str, kind: Callable[..., T] | UnionType, error: type[UserError], remedy: str = "") -> T:
    """Plain values from any source, checked against `kind` as in `parse_json` (lists become tuples where `kind` says so).

    Raises:
        UserError: of the class `error`: they do not match `kind`.
    """
    import json

    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError) as failure:
        raise error(_message(name, f"contains a value that JSON cannot express: {one_line(failure)}", remedy)) from failure
    return parse_json(text, name, kind, error, remedy)


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """The number and text of every non-blank line. Only a line feed ends a line: JSON may contain U+2028 and the like."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def parse_yaml(text: str, name: str, error: type[UserError], remedy: str = "") -> Any:
    """A YAML document as plain values. 1e-4 is a number, as in YAML 1.2. Aliases are refused: nested ones grow exponentially.

    Raises:
        UserError: of the class `error`: the text is not YAML, has an alias or a repeated key, or is nested too deep.
    """
    import yaml

    try:
        depth = 0
        for token in yaml.scan(text, Loader=_yaml_loader()):
            if isinstance(token, yaml.AliasToken):
                raise error(_message(name, "holds an alias (*name), which is not supported: write the value out", remedy))
            depth += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
            depth -= isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken)
            if depth > _DEEPEST:  # PyYAML's time grows with the square of the depth
                raise error(_message(name, f"is nested more than {_DEEPEST} deep", remedy))
        return yaml.load(text, Loader=_yaml_loader())
    # Numbers and dates out of range raise ValueError, unhashable keys TypeError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as failure:
        if isinstance(failure, UserError):
            raise
        raise error(_message(name, f"is neither YAML nor JSON: {one_line(failure)}", remedy)) from failure


@functools.cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses repeated keys and reads 1e-4 as a number; PyYAML, for YAML 1.1, takes the last value and reads text."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if (key.tag, str(key.value)) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add((key.tag, str(key.value)))
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+"), list("-+0123456789"))
    return Loader


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _faults(failure: "ValidationError") -> str:
    """What is wrong and where, such as `groups[0].widths: input should be a valid array`."""
    found = []
    for fault in failure.errors(include_url=False, include_input=False):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).removeprefix(".")
        text = one_line(fault["msg"])
        found.append(f"{where}: {text[:1].lower()}{text[1:]}" if where else text[:1].lower() + text[1:])
    found = list(dict.fromkeys(found))
    return f"is not as expected: {listed(found, '; ', _FAULTS_SHOWN)}"


def _message(name: Path | str, fault: str, remedy: str) -> str:
    return f"{name} {fault}{f'; {remedy}' if remedy else ''}"
