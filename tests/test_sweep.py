"""A sweep gives what as many forward passes give, in any chunks, on any devices, interrupted or not; and attribution is the derivative."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.edit_cases import neutral
from tests.golden_cases import relative_error
from tests.test_model_properties import LINEAR, SIZES, backbone, views
from und3rstand_jax.analysis import sweep as sweeps
from und3rstand_jax.analysis.sweep import grouped, start_of, sweep
from und3rstand_jax.analysis.sweep_pass import compiled_pass
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.support.errors import EditError, OptionError, OutputError, UserError
from und3rstand_jax.support.pieces import Pieces

pytestmark = pytest.mark.quick

EQUAL = ((32, 48), (32, 48))
HEADS = [
    u3d.knock_out(f"decoder.{block}.cross_attn.heads:{head}", view=view) for block, view in ((1, 1), (1, 2), (3, 2)) for head in (0, 1)
]


def measure(output, weights, factor):
    """Two numbers of each pair: both views' weighted points, and the weights' own sum."""
    sums = (jnp.sum(pred["pts3d"], axis=(1, 2)) @ jnp.array([1.0, 2.0, 3.0]) for pred in (output.pred1, output.pred2))
    tokens = {layer: jnp.mean(tokens[1], axis=(1, 2)) for layer, tokens in output.activations.items()}
    return {"points": factor * weights * sum(sums), "weights": weights, **tokens}


def with_others_neutral(edits):
    """Each with all others, which change nothing: they run one program, where each alone would have one of its own."""
    for chosen in range(len(edits)):
        yield sum((some if number == chosen else neutral(some) for number, some in enumerate(edits)), u3d.Edits())


def one_by_one(model, images, edits, weights, capture=()):
    found = []
    for some in with_others_neutral(edits):
        output = model(*images, capture=capture, head=True, edits=some)
        found.append(jax.device_get(measure(output, jnp.asarray(weights), 2.0)))
    return found


def assert_equal(swept, expected):
    assert len(swept) == len(expected)
    for ours, theirs in zip(swept, expected, strict=True):
        for name in ours:
            assert relative_error(ours[name], theirs[name]) < 3e-5, name


@functools.cache
def case(sizes=EQUAL, batch=3):
    images = tuple(np.asarray(view) for view in views(sizes, batch))
    return backbone(LINEAR), images, np.arange(1.0, batch + 1, dtype=np.float32)


@functools.cache
def expected_of_heads():
    model, images, weights = case()
    return one_by_one(model, images, [u3d.Edits(), *HEADS], weights)


@pytest.mark.slow
def test_knocked_out_heads_give_what_as_many_passes_give_in_chunks_that_do_not_divide():
    model, images, weights = case()
    swept = sweep(model, images, [u3d.Edits(), *HEADS], measure, weights, np.float32(2), batch_size=2)
    assert_equal(swept, expected_of_heads())
    assert all(result["points"].shape == (3,) for result in swept)
    np.testing.assert_array_equal([result["weights"] for result in swept], [weights] * 7)


def test_edits_of_the_same_sites_run_one_program_however_many_they_are():
    model, images, _ = case()
    assert [group.members for group in grouped([HEADS[0], HEADS[0] + HEADS[1]], model, images)] == [(0, 1)]


@pytest.mark.slow
def test_edits_of_every_kind_at_once():
    model, images, weights = case(SIZES)
    own = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32)  # each pair its own
    edits = [
        u3d.skip("encoder.0.self_attn"),
        u3d.knock_out("encoder.norm", view=1, tokens=[2]),
        u3d.steer("decoder.embed", np.ones(16, np.float32), view=2) + u3d.skip("decoder.2.mlp", view=1),
        u3d.replace("decoder.1.mlp", own, view=1),
        u3d.steer("decoder.1.mlp", 2 * own, view=1),
        u3d.block_attention("decoder.2.cross_attn", keys=[0, 1], view=2),
        u3d.knock_out("decoder.norm", view=2, tokens=[0]),
    ]
    swept = sweep(model, images, edits, measure, weights, np.float32(2), batch_size=2, capture=["decoder.3.mlp"])
    expected = one_by_one(model, images, edits, weights, ["decoder.3.mlp"])
    assert_equal(swept, expected)
    # What lies before an edit is not captured: it is as it was.
    assert ["decoder.3.mlp" in result for result in swept] == [True] * 6 + [False]


def test_a_pass_begins_at_the_layer_before_the_first_edit_and_both_views_heads_share_a_program():
    model, images, weights = case()
    starts = {
        "decoder.2.cross_attn.heads:0": "decoder.2.self_attn",
        "decoder.2.self_attn.update": "decoder.1.mlp",
        "decoder.0.self_attn.scores": "decoder.embed",
        "decoder.2.mlp": "decoder.2.mlp",
        "encoder.norm": "encoder.norm",
        "encoder.0.mlp.update": "encoder.0.self_attn",
        "encoder.0.self_attn.heads": None,
    }
    assert {site: start_of(u3d.knock_out(site), model.config) for site in starts} == starts
    groups = grouped([*HEADS, u3d.skip("decoder.1.cross_attn")], model, images)
    assert [group.start for group in groups] == ["decoder.1.self_attn", "decoder.1.self_attn", "decoder.3.self_attn"]
    assert sorted(group.members for group in groups) == [(0, 1, 2, 3), (4, 5), (6,)]
    before = compiled_pass.cache_info().misses
    sweep(model, images, HEADS, measure, weights, np.float32(3))
    programs = compiled_pass.cache_info().misses - before
    assert programs <= 2
    sweep(model, images, HEADS[::-1], measure, weights, np.float32(3))
    assert compiled_pass.cache_info().misses - before == programs


@pytest.mark.slow
def test_pairs_are_halved_until_a_pass_fits_into_memory(monkeypatch):
    model, images, weights = case()
    sizes = []
    run = sweeps._Program.run
    monkeypatch.setattr(sweeps._Program, "run", lambda self, *args: sizes.append(len(args[1])) or run(self, *args))
    monkeypatch.setattr(sweeps, "free_memory", lambda: 1000)
    assert_equal(sweep(model, images, HEADS[:1], measure, weights, np.float32(2)), expected_of_heads()[1:2])
    assert sizes == [1, 1, 1]


def test_an_interrupted_sweep_goes_on_and_computes_nothing_again(tmp_path):
    model, images, weights = case()
    finished = []

    def finish(arrays, pairs, broken=False):
        if broken and len(pairs) == 6:  # the second group, of two heads and three pairs
            raise KeyboardInterrupt
        finished.append(list(pairs))
        return {name: values + 1 for name, values in arrays.items()}

    ask = functools.partial(sweep, model, images, HEADS, measure, weights, np.float32(2))
    expected = ask(finish=finish)
    finished.clear()
    with pytest.raises(KeyboardInterrupt):
        ask(finish=functools.partial(finish, broken=True), pieces=Pieces(tmp_path / "sweep", {"heads": 6}))
    assert len(finished) == 1
    resumed = ask(finish=finish, pieces=Pieces(tmp_path / "sweep", {"heads": 6}))
    assert len(finished) == 2  # two groups of heads, one of them from the piece that was kept
    for ours, theirs in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(ours["points"], theirs["points"])
    with pytest.raises(OutputError, match="unfinished measurement with other options"):
        Pieces(tmp_path / "sweep", {"heads": 9})
    for piece in (tmp_path / "sweep").glob("*.npz"):
        piece.write_bytes(piece.read_bytes()[:100])
    ask(finish=finish, pieces=Pieces(tmp_path / "sweep", {"heads": 6}))
    assert len(finished) == 4  # a damaged piece is computed again
    Pieces(tmp_path / "sweep", {"heads": 6}).remove()
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_unedited_runs_are_as_many_as_were_asked_for_and_run_once():
    model, images, weights = case()
    counted = []

    def finish(arrays, pairs):
        counted.append(len(pairs))
        return arrays

    first, second, edited = sweep(model, images, [u3d.Edits(), u3d.Edits(), HEADS[0]], measure, weights, np.float32(2), finish=finish)
    np.testing.assert_array_equal(first["points"], second["points"])
    assert relative_error(edited["points"], first["points"]) > 1e-3
    assert counted == [3, 3]


def test_numbers_for_another_number_of_pairs_and_faults_of_any_edit_are_told_before_anything_runs(monkeypatch):
    model, images, weights = case()
    monkeypatch.setattr(sweeps._Program, "run", lambda *args: pytest.fail("a pass was run"))
    too_many = u3d.replace("decoder.1.mlp", np.zeros((7, 6, 16), np.float32))
    with pytest.raises(EditError, match=r"edits\[1\]: 'decoder.1.mlp': shift has numbers for 7 pairs; expected one set for all, or 3"):
        sweep(model, images, [HEADS[0], too_many], measure, weights)
    with pytest.raises(EditError, match=r"edits\[2\]: .*shift must be finite; found nan"):
        sweep(model, images, [*HEADS[:2], u3d.steer("decoder.3.mlp", np.nan)], measure, weights)


def test_edits_whose_numbers_have_other_shapes_are_other_programs():
    model, images, weights = case()
    vector = np.ones(16, np.float32)
    edits = [
        u3d.steer("decoder.1.mlp", vector, view=1) + u3d.knock_out("decoder.1.mlp", view=2),
        u3d.knock_out("decoder.1.mlp", view=1) + u3d.steer("decoder.1.mlp", vector, view=2),
    ]
    assert [group.members for group in grouped(edits, model, images)] == [(0,), (1,)]


def test_a_folder_of_something_else_is_not_taken_for_pieces(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    with pytest.raises(OutputError, match="holds something other than an unfinished measurement"):
        Pieces(tmp_path / "photos", {})
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"1"


def test_what_cannot_be_swept_is_refused():
    model, images, weights = case()
    with pytest.raises(OptionError, match="found 0 pairs"):
        sweep(model, tuple(image[:0] for image in images), HEADS, measure, weights[:0])
    with pytest.raises(UserError, match=r"edits\[0\]: no head output matches 'decoder.9.cross_attn.heads'"):
        sweep(model, images, [u3d.knock_out("decoder.9.cross_attn.heads")], measure, weights)


EIGHT_DEVICES = """
import json, jax, numpy as np
import und3rstand_jax as u3d
from tests import quick_programs
from tests.test_sweep import HEADS, case, measure
quick_programs.install()
assert jax.device_count() == 8
model, images, weights = case()
swept = u3d.sweep(model, images, HEADS, measure, weights, np.float32(2), batch_size=24)
print(json.dumps([result["points"].tolist() for result in swept]))
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    import os

    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, capture_output=True, text=True, check=True)
    model, images, weights = case()
    expected = sweep(model, images, HEADS, measure, weights, np.float32(2), batch_size=24)
    np.testing.assert_allclose(json.loads(ran.stdout), [result["points"] for result in expected], rtol=3e-5)


@pytest.mark.slow
def test_attribution_is_what_turning_a_head_down_a_little_does():
    model, images, weights = case()

    def scalar(output, weights, shared):
        return measure(output, weights, 1.0)["points"]

    attributed = u3d.attribution(model, images, "decoder.2.cross_attn.heads@2,decoder.1.mlp.update@1", scalar, weights, batch_size=2)
    assert list(attributed) == ["decoder.2.cross_attn.heads:0@2", "decoder.2.cross_attn.heads:1@2", "decoder.1.mlp.update@1"]

    def turned(chosen, scale):
        return u3d.Edits(tuple(u3d.Edit(name, scale=scale if name == chosen else 1.0) for name in attributed))

    for name, found in attributed.items():
        less, more = (scalar(model(*images, capture=(), head=True, edits=turned(name, scale)), weights, ()) for scale in (0.95, 1.05))
        np.testing.assert_allclose(found, -(np.asarray(more) - np.asarray(less)) / 0.1, rtol=2e-2, atol=2e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.optimised  # memory is that of programs compiled as users compile them
def test_computing_blocks_again_changes_no_attribution_and_holds_less():
    from und3rstand_jax.analysis.attribution import _gradient, unit_scales

    model, images, weights = case()
    sites = ("decoder.1.cross_attn.heads", "decoder.2.mlp.update")
    scales = unit_scales(sites, 3, model.config)

    def scalar(output, weights, shared):
        return measure(output, weights, 1.0)["points"]

    found, memory = [], []
    for remat in (False, True):
        lowered = _gradient.lower(model.module.clone(remat=remat), scalar, (), True, scales, model.params, tuple(images), weights, ())
        compiled = lowered.compile()
        found.append(compiled(scales, model.params, tuple(images), weights, ()))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert memory[1] < memory[0]


@functools.cache
def of_three(batch=2):
    """A model that takes any number of views, sets of three of one size, and weights for `measure`."""
    config = dataclasses.replace(LINEAR, enc_depth=1, dec_depth=2, max_views=None)
    random = np.random.default_rng(0)
    images = tuple(random.uniform(-1, 1, (batch, 32, 48, 3)).astype(np.float32) for _ in range(3))
    return random_backbone(config, 0), images, np.arange(1.0, batch + 1, dtype=np.float32)


def of_view3(output, weights, shared):
    return {"points": weights * jnp.sum(output.pointmaps[2]["pts3d"], axis=(1, 2, 3))}


@pytest.mark.slow
def test_edits_of_a_third_view_are_swept_and_run_the_program_of_the_others():
    model, images, weights = of_three()
    edits = [u3d.Edits(), *(u3d.knock_out(f"decoder.0.cross_attn.heads:1@{view}") for view in (1, 2, 3)), u3d.skip("decoder.1.mlp@3")]
    groups = grouped(edits, model, images)
    assert [(group.members, group.start) for group in groups] == [
        ((0,), None),
        ((1, 2, 3), "decoder.0.self_attn"),
        ((4,), "decoder.1.cross_attn"),
    ]
    swept = sweep(model, images, edits, of_view3, weights)
    for edit, result in zip(with_others_neutral(edits), swept, strict=True):
        expected = of_view3(model(*images, capture=(), head=True, edits=edit), weights, ())
        assert relative_error(result["points"], expected["points"]) < 3e-5
    assert len({float(result["points"][0]) for result in swept}) == len(edits)
    with pytest.raises(OptionError, match="this model takes two views; found 3"):
        sweep(case()[0], images, edits, of_view3, weights)
    with pytest.raises(EditError, match=r"edits\[0\]: .*there are 3 views, 1 to 3; found view 4"):
        sweep(model, images, [u3d.skip("decoder.1.mlp@4")], of_view3, weights)


@pytest.mark.slow
def test_attribution_has_places_of_every_view():
    model, images, weights = of_three()

    def scalar(output, weights, shared):
        return of_view3(output, weights, shared)["points"]

    attributed = u3d.attribution(model, images, "decoder.1.mlp.update", scalar, weights, batch_size=2, remat=False)
    assert list(attributed) == [f"decoder.1.mlp.update@{view}" for view in (1, 2, 3)]
    # In the last block nothing that the MLP adds to one view's stream reaches another's.
    np.testing.assert_array_equal([attributed["decoder.1.mlp.update@1"], attributed["decoder.1.mlp.update@2"]], np.zeros((2, 2)))
    less, more = (
        scalar(model(*images, capture=(), head=True, edits=u3d.Edits((u3d.Edit("decoder.1.mlp.update", 3, scale=scale),))), weights, ())
        for scale in (0.95, 1.05)
    )
    np.testing.assert_allclose(attributed["decoder.1.mlp.update@3"], -(np.asarray(more) - np.asarray(less)) / 0.1, rtol=2e-2, atol=2e-3)
