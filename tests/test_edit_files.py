"""Edits as JSON, with their arrays, and back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import BLOCKED, numbers
from und3rstand_jax.model.edit_files import edits_to_json
from und3rstand_jax.model.edits import Edit, Edits

SPEC = [
    {"site": "decoder.*.cross_attn.heads:0-1", "view": 2, "scale": 0},
    {"site": "decoder.1.mlp", "tokens": [5, 2], "shift": "direction"},
    {"site": "decoder.1.cross_attn.scores", "heads": [0], "keys": [0, 1], "queries": [3], "shift": BLOCKED},
    {"site": "decoder.0.self_attn.scores@1", "pairs": [[0, 3], [2, 1]], "scale": 0.5, "shift": "-inf"},
]
ARRAYS = {"direction": numbers(32)}
READ = [
    ("decoder.*.cross_attn.heads", 2, (0, 1), None, None, None, None, 0, 0, None),
    ("decoder.1.mlp", "all", None, (5, 2), None, None, None, 1, ARRAYS["direction"].tolist(), None),
    ("decoder.1.cross_attn.scores", "all", (0,), None, (3,), (0, 1), None, 1, BLOCKED, None),
    ("decoder.0.self_attn.scores", 1, None, None, None, None, ((0, 3), (2, 1)), 0.5, BLOCKED, None),
]


def plainly(edits):
    fields = [field.name for field in dataclasses.fields(Edit)]
    return [
        tuple(value.tolist() if isinstance(value, np.ndarray) else value for value in (getattr(edit, name) for name in fields))
        for edit in edits
    ]


def saved(folder, content, arrays=None, name="edits"):
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if arrays is not None:
        np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.json"


def test_edits_are_read_from_a_list_an_object_and_a_file_with_its_arrays_beside_it(tmp_path):
    file = saved(tmp_path, {"edits": SPEC, "what": "other keys are left alone"}, ARRAYS)
    assert "-Infinity" in file.read_text()
    elsewhere = saved(tmp_path, SPEC, name="alone")
    readings = [
        u3d.read_edits(SPEC, ARRAYS),
        u3d.read_edits({"edits": SPEC, "what": 1}, ARRAYS),
        u3d.read_edits(file),
        u3d.read_edits(str(file)),
    ]
    readings += [u3d.read_edits(elsewhere, file.with_suffix(".npz")), u3d.read_edits(elsewhere, ARRAYS)]
    assert [plainly(edits) for edits in readings] == [READ] * len(readings)
    assert plainly(u3d.read_edits([{"site": "decoder.norm"}])) == [("decoder.norm", "all", *(None,) * 5, 1, 0, None)]


def test_edits_survive_the_way_to_json_and_back(tmp_path):
    edits = u3d.read_edits(SPEC, ARRAYS) + Edits(
        (Edit("encoder.norm", 2, tokens=[1], scale=jnp.asarray(ARRAYS["direction"][:1]), shift=np.float32(0.1)),)
    )
    spec, arrays = edits_to_json(edits)
    assert sorted(arrays) == ["edits/1/shift", "edits/4/scale"]
    back = u3d.read_edits(saved(tmp_path, spec, arrays))
    assert plainly(back)[:4] == READ
    assert plainly(back)[4] == (
        "encoder.norm",
        2,
        None,
        (1,),
        None,
        None,
        None,
        ARRAYS["direction"][:1].tolist(),
        float(np.float32(0.1)),
        None,
    )
    again = edits_to_json(back)
    assert again[0] == spec and all(np.array_equal(again[1][name], arrays[name]) for name in arrays)
    json.dumps(spec, allow_nan=False)  # any reader of JSON reads it
    assert edits_to_json(Edits()) == ([], {})


UNREADABLE = [
    ([{"site": "decoder.1.mlp", "token": [1]}], r"token: extra inputs are not permitted"),
    ([{"view": 1}], r"site: field required"),
    ([{"site": "decoder.1.mlp", "view": 0}], "input should be greater than or equal to 1"),
    ([{"site": "decoder.1.mlp", "view": "1"}], r"view\.[a-z-]+: input should be"),
    ([{"site": "decoder.1.mlp", "tokens": 1}], r"tokens\.list\[int\]: input should be a valid (list|array)"),
    ([{"site": "decoder.1.mlp", "tokens": [1.5]}], r"tokens\.list\[int\]\[0\]: input should be a valid integer"),
    ([{"site": "decoder.1.mlp", "tokens": [True]}], r"tokens\.list\[int\]\[0\]: input should be a valid integer"),
    ([{"site": "decoder.1.mlp.scores", "pairs": [[1]]}], r"pairs\[0\]"),
    ([{"site": "decoder.1.mlp", "scale": True}], "scale"),
    ([{"site": "decoder.1.mlp", "scale": [1, 2]}], "scale"),
    ([{"site": "decoder.1.mlp", "scale": None}], "scale"),
    (
        [{"site": "decoder.1.mlp", "shift": "missing"}],
        r"edit 0, 'decoder\.1\.mlp': shift 'missing' names no array given; given: direction",
    ),
    (
        [{"site": "decoder.norm"}, {"site": "decoder.1.mlp", "scale": "gone"}],
        r"edit 1, 'decoder\.1\.mlp': scale 'gone' names no array given",
    ),
    ([{"site": "decoder.1.mlp", "tokens": [-1]}], "tokens must be whole numbers, counted from 0"),
    ([{"site": "decoder.1.mlp@0"}], "the view after @"),
    ({"edit": []}, "edits"),
    ({"edits": {}}, "edits"),
    ([[]], r"\[0\]"),
]


@pytest.mark.parametrize(("spec", "message"), UNREADABLE)
def test_edits_that_are_not_edits_are_refused_from_values_and_from_a_file(spec, message, tmp_path):
    with pytest.raises(u3d.EditError, match=message):
        u3d.read_edits(spec, ARRAYS)
    with pytest.raises(u3d.EditError, match=message):
        u3d.read_edits(saved(tmp_path, spec, ARRAYS))


def test_files_that_cannot_be_read_are_refused_with_their_name(tmp_path):
    with pytest.raises(u3d.EditError, match=r"none\.json cannot be read: no such file"):
        u3d.read_edits(tmp_path / "none.json")
    with pytest.raises(u3d.EditError, match=r"edits\.json is not as expected: invalid JSON"):
        u3d.read_edits(saved(tmp_path, "[{'site'"))
    good = saved(tmp_path, SPEC, ARRAYS)
    whole_npz = good.with_suffix(".npz").read_bytes()
    np.save(tmp_path / "one.npy", ARRAYS["direction"])
    np.savez(tmp_path / "objects.npz", direction=np.array([{"run": "me"}], object))
    damaged = {
        "text": b"no arrays",
        "nothing": b"",
        "one_array": (tmp_path / "one.npy").read_bytes(),
        "objects": (tmp_path / "objects.npz").read_bytes(),
        "truncated": whole_npz[: len(whole_npz) // 2],
        "flipped": whole_npz.replace(ARRAYS["direction"].tobytes()[:8], b"\0" * 8),
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(u3d.EditError, match=rf"{name}\.npz cannot be read as an npz of arrays: "):
            u3d.read_edits(good, tmp_path / f"{name}.npz")
    with pytest.raises(u3d.EditError, match=r"gone\.npz cannot be read as an npz of arrays"):
        u3d.read_edits(good, tmp_path / "gone.npz")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("spec", "arrays", "message"), [(None, None, "edits"), (7, None, "edits"), (SPEC, [1.0], "arrays must be a mapping")]
)
def test_what_is_neither_a_file_nor_what_it_would_hold_is_refused(spec, arrays, message):
    with pytest.raises(u3d.EditError, match=message):
        u3d.read_edits(spec, arrays)
