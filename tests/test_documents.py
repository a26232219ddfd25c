"""Documents of any origin: read, or refused in one line that says where and what."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import TypedDict

from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.documents import checked, json_lines, parse_json, parse_yaml, read_json, read_text
from und3rstand_jax.support.errors import ConfigError, DataError, OptionError, UserError


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    sides: tuple[float, ...] = ()


class Named(TypedDict):
    name: str
    sizes: list[Size]


def refusal(text: str, kind: Any = Named) -> str:
    with pytest.raises(DataError) as caught:
        parse_json(text, "list.json", kind, DataError, "write it again")
    message = str(caught.value)
    assert message.isprintable() and message.startswith("list.json ") and message.endswith("; write it again")
    return message.removeprefix("list.json ").removesuffix("; write it again")


def test_values_have_their_types() -> None:
    text = '{"name": "a\u2028b", "sizes": [{"width": 3, "sides": [1, 2.5, Infinity, NaN]}], "more": [1]}'
    read = parse_json(text, "list.json", Named, DataError)
    assert read["name"] == "a\u2028b" and read["sizes"][0].width == 3
    assert read["sizes"][0].sides[:3] == (1.0, 2.5, math.inf) and math.isnan(read["sizes"][0].sides[3])
    assert checked({"name": "a", "sizes": [{"width": 3, "sides": (1, 2)}]}, "it", Named, DataError)["sizes"] == [Size(3, (1.0, 2.0))]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "is not as expected: input should be an object"),
        ('{"name": 3, "sizes": []}', "is not as expected: name: input should be a valid string"),
        ('{"name": "a", "sizes": [{"width": "3"}]}', "is not as expected: sizes[0].width: input should be a valid integer"),
        ('{"name": "a", "sizes": [{"width": true}]}', "sizes[0].width: input should be a valid integer"),
        ('{"name": "a", "sizes": [{"width": 1.5}]}', "sizes[0].width: input should be a valid integer"),
        ('{"name": "a", "sizes": {"0": 1}}', "sizes: input should be a valid array"),
        ("{", "invalid JSON: EOF while parsing an object at line 1 column 1"),
        ("", "invalid JSON: EOF while parsing a value"),
        ("{'name': 1}", "invalid JSON: key must be a string"),
        ('{"name": ' + "[" * 100_000, "invalid JSON: recursion limit exceeded"),
        ('{"name": ' + "9" * 5000 + "}", "invalid JSON: number out of range"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_where(text: str, fault: str) -> None:
    assert fault in refusal(text)


def test_of_many_faults_the_first_are_told() -> None:
    message = refusal('{"name": "a", "sizes": [' + ", ".join(["{}"] * 9) + "]}")
    assert message.count("field required") == 5 and message.endswith("sizes[4].width: field required; and 4 more")


def test_bytes_of_a_file_name_that_are_not_utf_8_are_read_as_they_are_shown() -> None:
    assert parse_json(r'{"name": "caf\udce9 \ud83d\ude00", "sizes": []}', "it", Named, DataError)["name"] == r"caf\udce9 😀"


def test_files_are_regular_bounded_and_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(file, DataError) == "{}" and read_json(file, dict[str, int], DataError) == {}
    file.write_bytes(b"{\xff}")
    with pytest.raises(DataError, match=r"a\.json is not UTF-8 text: byte 1 is 0xff; again$"):
        read_text(file, DataError, "again")
    file.write_bytes(b"x" * 2049)
    with pytest.raises(OptionError, match=r"is larger than 2 KiB, too much for a file of its kind"):
        read_text(file, OptionError, largest=2048)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in ((pipe, "it is a pipe, expected a file"), (tmp_path, "it is a folder"), (tmp_path / "no", "no such file")):
        with pytest.raises(ConfigError, match=f"cannot be read: {reason}"):
            read_text(path, ConfigError)


def test_lines_end_with_line_feeds_alone() -> None:
    assert list(json_lines("a\u2028b\n\n \nc\x0cd\r\n")) == [(1, "a\u2028b"), (4, "c\x0cd\r")]


def test_yaml_is_read_as_people_mean_it() -> None:
    text = "a: 1e-4\nb: [1, 2.5, yes]\nc:\n  d: text\n"
    assert parse_yaml(text, "it", OptionError) == {"a": 1e-4, "b": [1, 2.5, True], "c": {"d": "text"}}


BOMB = "\n".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: &a [x, x]\n" + BOMB, "holds an alias"),
        ("a: 1\nb: 2\na: 3\n", "a is given twice"),
        ("a: " + "[" * 20_000, "nested"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: [1, 2", "neither YAML nor JSON"),
        ("? {}\n: 1", "neither YAML nor JSON"),
        ("a: 2026-99-99", "neither YAML nor JSON"),
        ("a: " + "9" * 5000, "neither YAML nor JSON"),
    ],
)
def test_yaml_that_cannot_be_meant_is_one_line(text: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "config.yaml", OptionError)
    assert fault in str(caught.value) and str(caught.value).isprintable() and str(caught.value).startswith("config.yaml ")


def test_cameras_beyond_any_arithmetic_are_refused() -> None:
    far, giant = np.eye(4), np.diag([1e173, 1e173, 1.0])
    far[2, 3] = -7e173
    assert pose_fault(far) == "places the camera 7e+173 units from the origin, which is too far to compute with its points"
    assert intrinsics_fault(giant) == "has the value 1e+173, which is too large for pixels"
    far[2, 3] = 5e10  # a national grid in millimetres
    assert pose_fault(far) is None and intrinsics_fault(np.diag([1e6, 1e6, 1.0])) is None
