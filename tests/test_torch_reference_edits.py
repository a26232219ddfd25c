"""The PyTorch reference's interventions against the original's, and by hand where the original was not asked."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.golden_cases import EDIT_CASES, GOLDEN, EditCase, GoldenCase, load_edit_case, load_golden, relative_error, subsample, view_images
from tests.with_torch import HAS_TORCH, needs_torch

if HAS_TORCH:
    import torch
    from torch import nn

    from tests.torch_reference import DUSt3RReference, load_reference
    from tests.torch_reference.backbone import plain_attention
    from tests.torch_reference.edits import dense, edited

pytestmark = needs_torch

# What rounding float64 to float32 leaves of these arrays, in norm.
STORAGE_ERROR = 3.1e-8
SEVERAL = ("edit_heads", "edit_sublayers", "edit_knockout", "edit_many", "edit_mixed_sizes", "edit_other_layers")

Arrays = dict[str, np.ndarray]

golden = functools.cache(load_golden)


@functools.cache
def edit_case(name: str) -> EditCase:
    """With one base for all cases of it: its weights take seconds to make."""
    case = load_edit_case(name, with_weights=False)
    return dataclasses.replace(case, base=golden(case.base.name))


def reference(base: GoldenCase, dtype: str = "float64", attention: str = "plain") -> DUSt3RReference:
    return load_reference(base.config, base.state_dict, attention).to(getattr(torch, dtype))


def run(model: DUSt3RReference, images: Sequence[np.ndarray]) -> Arrays:
    views = (torch.from_numpy(image).permute(0, 3, 1, 2).to(model.mask_token.dtype) for image in images)
    with torch.inference_mode():
        output = model(*views)
    arrays = {f"{layer}/view{v}": t.numpy() for layer, tokens in output.activations.items() for v, t in enumerate(tokens, start=1)}
    return arrays | {f"head.{key}/view{v}": t.numpy() for v, pred in enumerate(output[1:], start=1) for key, t in (pred or {}).items()}


@functools.cache
def unedited(base: str, dtype: str = "float64") -> Arrays:
    return run(reference(golden(base), dtype), golden(base).images)


def run_edited(base: GoldenCase, edits: Sequence[Mapping[str, Any]], shifts: Arrays | None = None, **options: str) -> Arrays:
    model = reference(base, **options)
    with edited(model, edits, shifts or {}):
        return run(model, base.images)


@functools.cache
def edited_run(name: str, dtype: str = "float64") -> Arrays:
    case = edit_case(name)
    return run_edited(case.base, case.edits, case.shifts, dtype=dtype)


def trunk(base: GoldenCase) -> GoldenCase:
    """The same without heads, whose convolutions take most of a run's time."""
    state_dict = {key: array for key, array in base.state_dict.items() if not key.startswith("downstream_head")}
    return dataclasses.replace(base, case=base.case | {"config": base.config | {"head_type": None}}, state_dict=state_dict)


def stored_of(arrays: Arrays, case: EditCase) -> Arrays:
    """The part of our arrays that the case holds."""
    return {name: subsample(arrays[name], name, case.case) for name in case.arrays if name in arrays}


def installed(model: DUSt3RReference) -> list[nn.Module]:
    """The modules that are not as they were made."""
    attends = [(module, module.attend) for module in model.modules() if hasattr(module, "attend")]
    hooked = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    return hooked + [module for module, attend in attends if attend is not plain_attention]


def edit(site: str, view: int | str = "both", scale: float = 1, shift: Any = 0, **places: Any) -> dict[str, Any]:
    return {"site": site, "view": view, "scale": scale, "shift": shift, **places}


def test_every_case_is_listed() -> None:
    assert sorted(EDIT_CASES) == sorted(path.stem for path in GOLDEN.glob("edit_*.json"))


@pytest.mark.parametrize("name", EDIT_CASES)
def test_golden_in_float64(name: str) -> None:
    case = edit_case(name)
    ours = stored_of(edited_run(name), case)
    assert ours.keys() == case.arrays.keys()
    assert {key: e for key in ours if (e := relative_error(ours[key], case.arrays[key])) > STORAGE_ERROR} == {}


@pytest.mark.parametrize("name", EDIT_CASES)
def test_golden_in_float32(name: str) -> None:
    case = edit_case(name)
    ours = stored_of(edited_run(name, "float32"), case)
    errors = {key: relative_error(ours[key], case.arrays[key]) for key in ours}
    assert {key: e for key, e in errors.items() if e > 2 * case.float32_error(key)} == {}


@pytest.mark.parametrize("name", EDIT_CASES)
def test_what_the_edits_change_and_what_they_do_not_reach(name: str) -> None:
    case = edit_case(name)
    before, after = (stored_of(arrays, case) for arrays in (unedited(case.base.name), edited_run(name)))
    for key in case.arrays:
        if case.relative_change(key):
            assert relative_error(after[key], before[key]) == pytest.approx(case.relative_change(key), rel=1e-2), key
        else:
            assert np.array_equal(after[key], before[key]), key
            assert np.array_equal(case.arrays[key], subsample(case.base.arrays[key], key, case.case)), key


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_neutral_edits_at_every_site_change_no_bit(dtype: str) -> None:
    case = edit_case("edit_neutral")
    assert len({edit["site"] for edit in case.edits}) == 136
    before, after = unedited(case.base.name, dtype), edited_run(case.name, dtype)
    assert [key for key in before if not np.array_equal(before[key], after[key])] == []


@pytest.mark.parametrize("name", SEVERAL)
def test_leaving_out_any_one_edit_shows(name: str) -> None:
    case = edit_case(name)
    base = trunk(case.base)
    for i in range(len(case.edits)):
        ours = stored_of(run_edited(base, case.edits[:i] + case.edits[i + 1 :], case.shifts), case)
        assert max(relative_error(ours[key], case.arrays[key]) / case.float32_error(key) for key in ours) > 600, case.edits[i]


@pytest.mark.parametrize("name", ["edit_many", "edit_other_layers", "edit_mixed_sizes", "edit_neutral"])
def test_edits_are_gone_when_the_context_is_left(name: str) -> None:
    case = edit_case(name)
    model = reference(trunk(case.base))
    with edited(model, case.edits, case.shifts):
        run(model, case.base.images)
    with pytest.raises(KeyError, match="inside"), edited(model, case.edits, case.shifts):
        raise KeyError("inside")
    after, before = run(model, case.base.images), unedited(case.base.name)
    assert "decoder.norm/view2" in after
    assert [key for key in after if not np.array_equal(before[key], after[key])] == []
    assert not installed(model)


def test_a_context_that_cannot_be_entered_leaves_nothing() -> None:
    model = reference(golden("tiny_linear"))
    with pytest.raises(IndexError), edited(model, [edit("decoder.0.self_attn.scores"), edit("decoder.99.mlp")], {}):
        pass
    assert not installed(model)


def test_shifts_are_what_the_cases_call_them() -> None:
    """The mean of a head over batch and tokens, and the stream of a run on other images."""
    case = edit_case("edit_mean_ablation")
    model, heads = reference(case.base), []
    with model.dec_blocks[4].cross_attn.proj.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0].unflatten(-1, (3, -1)))):
        run(model, case.base.images)
    assert relative_error(heads[0][:, :, 2].mean((0, 1)), case.shifts["edits/0/shift"]) < STORAGE_ERROR
    case = edit_case("edit_patching")
    source = case.case["shift_source"]["edits/0/shift"]
    name, other_seed = source["images"]["name"], {"seed": source["images"]["seed"]}
    others = run(model, [view_images(name, case.base.case | other_seed, view) for view in ("view1", "view2")])
    assert relative_error(others[source["array"]], case.shifts["edits/0/shift"]) < STORAGE_ERROR


def test_edits_of_one_site_act_in_the_order_given() -> None:
    base, site, plain = golden("tiny_linear"), "decoder.0.mlp", unedited("tiny_linear")["decoder.0.mlp/view1"]
    double, add = edit(site, 1, scale=2), edit(site, 1, shift=3)
    np.testing.assert_array_equal(run_edited(base, [double, add])[f"{site}/view1"], 2 * plain + 3)
    np.testing.assert_array_equal(run_edited(base, [add, double])[f"{site}/view1"], 2 * (plain + 3))


def test_an_outer_contexts_edits_act_before_an_inner_ones() -> None:
    base, model = golden("tiny_linear"), reference(golden("tiny_linear"))
    first, second = (
        [edit(f"decoder.0.cross_attn{part}", 2, scale, shift) for part in (".scores", ".heads", ".update", "")]
        for scale, shift in ((2, 0), (0.5, 0.25))
    )
    with edited(model, first, {}):
        with edited(model, second, {}):
            nested = run(model, base.images)
        outer = run(model, base.images)
    for ours, edits in ((nested, first + second), (outer, first)):
        expected = run_edited(base, edits)
        assert [key for key in ours if not np.array_equal(ours[key], expected[key])] == []


def test_edited_scores_do_not_depend_on_the_attention() -> None:
    case = edit_case("edit_mixed_sizes")
    plain, sdpa = (run_edited(case.base, case.edits, case.shifts, attention=attention) for attention in ("plain", "sdpa"))
    assert max(relative_error(sdpa[key], plain[key]) for key in plain) < 1e-12


BEFORE_THE_VIEWS_MEET = (
    *("patch_embed", "encoder.0.self_attn.scores", "encoder.0.self_attn.heads", "encoder.1.self_attn.update", "encoder.1.self_attn"),
    *("encoder.1.mlp.update", "encoder.1.mlp", "encoder.norm", "decoder.embed"),
)


@pytest.mark.parametrize("view", [1, 2])
@pytest.mark.parametrize("site", BEFORE_THE_VIEWS_MEET)
def test_a_view_is_edited_alone_whether_or_not_the_views_go_as_one_batch(site: str, view: int) -> None:
    """Views of different sizes, which are run in turn, against each of them in a batch with itself."""
    base = golden("tiny_linear_mixed_sizes")
    one_key = {"keys": [3]} if site.endswith("scores") else {"tokens": [3]}
    edits = [edit(site, view, -0.5, 0.75, **one_key)]
    in_turn, before = run_edited(base, edits), unedited(base.name)
    as_one = run_edited(dataclasses.replace(base, images=(base.images[view - 1],) * 2), edits)
    ours, other = f"decoder.embed/view{view}", f"decoder.embed/view{3 - view}"
    assert relative_error(in_turn[ours], before[ours]) > 1e-6
    assert relative_error(in_turn[ours], as_one[ours]) < 1e-12
    np.testing.assert_array_equal(in_turn[other], before[other])
    assert relative_error(as_one[other], before[ours]) < 1e-12


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        ({}, lambda head, query, key: True),
        ({"heads": [1]}, lambda head, query, key: head == 1),
        ({"queries": [0, 2], "keys": [3]}, lambda head, query, key: query in (0, 2) and key == 3),
        ({"heads": [0], "pairs": [[2, 0], [1, 3]]}, lambda head, query, key: head == 0 and (query, key) in ((2, 0), (1, 3))),
        ({"pairs": [[0, 1]]}, lambda head, query, key: (query, key) == (0, 1)),
    ],
)
def test_places_of_scores(places: dict[str, Any], chosen: Any) -> None:
    scale, shift = dense(edit("decoder.0.cross_attn.scores", 1, 0.5, -math.inf, **places), {}, torch.zeros(2, 2, 3, 4))
    for _, *place in np.argwhere(np.ones((2, 2, 3, 4))):
        expected = (0.5, -math.inf) if chosen(*place) else (1, 0)
        assert (scale[:, *place].unique().tolist(), shift[:, *place].unique().tolist()) == ([expected[0]], [expected[1]])


def test_an_array_is_spread_over_the_chosen_tokens_and_heads() -> None:
    by_token = np.array([[[10.0]], [[20.0]]], np.float32)  # (tokens, heads, D)
    by_image = np.arange(1, 3, dtype=np.float32)[:, None, None, None]  # (B, tokens, heads, D)
    places = {"tokens": [3, 1], "heads": [0, 2]}
    x = torch.zeros(2, 4, 3, 2, dtype=torch.float64)
    _, shift = dense(edit("encoder.0.self_attn.heads", 1, 1, "a", **places), {"a": by_token + by_image}, x)
    expected = np.zeros((2, 4, 3, 2))
    for image in (0, 1):
        for head in (0, 2):
            expected[image, 3, head], expected[image, 1, head] = 10 + image + 1, 20 + image + 1
    np.testing.assert_array_equal(shift, expected)


def test_scales_and_shifts_are_float32_numbers() -> None:
    scale, shift = dense(edit("decoder.norm", 1, 0.9, 0.1), {}, torch.zeros(1, 2, 3, dtype=torch.float64))
    assert (scale.dtype, set(scale.flatten().tolist())) == (torch.float64, {float(np.float32(0.9))})
    assert (shift.dtype, set(shift.flatten().tolist())) == (torch.float64, {float(np.float32(0.1))})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (edit("decoder.0.mlp.heads"), "no site 'decoder.0.mlp.heads'"),
        (edit("decoder.0.self_attn.score"), "no site"),
        (edit("encoder.0.mlp", heads=[0]), "encoder.0.mlp has no heads to choose from"),
        (edit("decoder.1.self_attn.scores", tokens=[0]), "has no tokens to choose from"),
        (edit("decoder.1.self_attn.heads", keys=[0]), "has no keys to choose from"),
        (edit("decoder.1.self_attn.scores", keys=[0], pairs=[[0, 0]]), "either pairs or queries and keys"),
    ],
)
def test_what_there_is_not_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_edited(golden("tiny_linear"), [wrong])
