"""Training on a VGGT: pointmap probes, pose probes and the model itself, on a tiny one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vggt_cases import CONFIG, SHAPE, batch, module, moving, sets
from und3rstand_jax.data.example import to_example
from und3rstand_jax.geometry.loss import SetSums, confidence_loss, true_scale
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.pose_encoding import cameras_of
from und3rstand_jax.model.vggt.camera import CameraHead
from und3rstand_jax.probes.config import probe_config
from und3rstand_jax.probes.pose import camera_tokens, pose_config
from und3rstand_jax.probes.probes import PointmapProbes
from und3rstand_jax.probes.rows import CONSTANT
from und3rstand_jax.support.errors import ConfigError, LayerError, OptionError
from und3rstand_jax.train.architecture import starting_point
from und3rstand_jax.train.options import BackboneOptions
from und3rstand_jax.train.step.backbone_step import MODEL, backbone_step, initial_backbone_state
from und3rstand_jax.train.step.data_parallel import AXIS, total
from und3rstand_jax.train.step.kept_step import Kept, Poses, initial_kept_state, kept_errors, kept_step
from und3rstand_jax.train.step.model_loss import ModelSums, camera_sums, mean_model_loss, trained_heads
from und3rstand_jax.train.step.optimizer import Recipe
from und3rstand_jax.train.step.pose_step import MEASURES, PoseReading, pose_angles, pose_distances, true_poses
from und3rstand_jax.train.step.probe_step import captured_tokens, initial_state, probe_step, trunk_params

LAYERS = ("encoder.norm", "frame.0.mlp", "global.1.mlp")
RECIPE = Recipe(200, 2, learning_rate=1e-2, weight_decay=0.0)


def example_of(batch):
    return to_example(batch.views)


def test_a_trunk_is_what_the_config_says():
    assert sorted(trunk_params(moving(), CONFIG)) == ["aggregator", "encoder"]
    assert trunk_params({"decoder": 1, "encoder": 2, "head1": 3}, BackboneConfig()) == {"decoder": 1, "encoder": 2}


@pytest.mark.optimised
def test_the_loss_of_a_step_is_that_of_each_layers_pointmaps_from_the_patches():
    probes = probe_config(CONFIG, LAYERS, hidden=12, depth=2)
    state, sample = initial_state(probes, RECIPE, 5), batch(2)
    step = functools.partial(probe_step, module=module(), probes=probes, recipe=RECIPE, example_of=example_of, total=lambda tree: tree)
    new, losses = jax.jit(step)(state, trunk_params(moving(), CONFIG), sample)
    example = example_of(sample)
    output = jax.jit(functools.partial(module().apply, capture=LAYERS, head=False))({"params": moving()}, *example.images)
    patches = (SHAPE[0] // 14) * (SHAPE[1] // 14)
    assert output["global.1.mlp"][0].shape == (2, 5 + patches, 32) and output.patches("global.1.mlp")[0].shape == (2, patches, 32)
    pointmaps = PointmapProbes(probes).apply({"params": state.params}, output)
    assert [pointmap["pts3d"].shape for pointmap in pointmaps[0]] == [(2, *SHAPE, 3)] * 3
    expected = [confidence_loss(of_layer, example.targets) for of_layer in pointmaps]
    np.testing.assert_allclose(losses["group0"].total, [loss.total for loss in expected], rtol=2e-4)
    assert int(new.step) == 1
    # What a probe reads are patches alone: other special tokens change nothing.
    moved = {layer: tuple(tokens.at[:, :5].add(1) for tokens in output[layer]) for layer in LAYERS}
    again = BackboneOutput(moved, output.image_sizes, special_tokens=output.special_tokens)
    for one, other in zip(pointmaps, PointmapProbes(probes).apply({"params": state.params}, again), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_holds_tokens_in_what_the_trunk_computes_in(dtype):
    probes = probe_config(CONFIG, LAYERS, hidden=12, depth=2)
    model, images = module().clone(dtype=dtype), jax.eval_shape(example_of, batch(2))
    tokens = jax.eval_shape(functools.partial(captured_tokens, model, probes), trunk_params(moving(), CONFIG), images)["group0"]
    patches = (SHAPE[0] // 14) * (SHAPE[1] // 14)
    assert [(view.shape, view.dtype) for view in tokens] == [((3, 2, patches, 32), dtype)] * 3


def test_true_poses_are_the_cameras_in_view_1s_frame_in_units_of_the_scene():
    example = example_of(batch(2))
    poses, scale = true_poses(example), true_scale(example.targets)
    assert poses.encodings.shape == (2, 3, 9) and poses.known.all()
    np.testing.assert_allclose(poses.encodings[:, 0, :7], [[0, 0, 0, 0, 0, 0, 1]] * 2, atol=1e-6)
    for later in (1, 2):
        camera = cameras_of(poses.encodings[:, later], SHAPE)
        np.testing.assert_allclose(camera.intrinsics[:, [0, 1], [0, 1]], example.intrinsics[later][:, [0, 1], [0, 1]], rtol=1e-5)
        for number in range(2):
            own, first = (np.asarray(example.targets[view].cam2world[number], np.float64) for view in (later, 0))
            expected = (np.linalg.inv(own) @ first)[:3]
            expected[:, 3] /= scale[number]
            np.testing.assert_allclose(camera.extrinsics[number], expected, atol=1e-5)
    points = np.concatenate([np.asarray(target.pts3d[0])[np.asarray(target.valid[0])] for target in example.targets])
    origin = np.asarray(example.targets[0].cam2world[0, :3, 3])
    assert float(scale[0]) == pytest.approx(np.linalg.norm(points - origin, axis=1).mean(), rel=1e-5)


def test_a_set_without_a_valid_pixel_has_no_unit_and_no_loss():
    one, *others = sets(2)
    dark = [view._replace(depth=np.concatenate([np.zeros_like(view.depth[:1]), view.depth[1:]])) for view in (one, *others)]
    poses = true_poses(to_example(tuple(dark)))
    poses = poses._replace(encodings=poses.encodings[:, 1:])
    assert poses.known.tolist() == [False, True] and np.isfinite(poses.encodings).all()
    reading = PoseReading(pose_config(CONFIG, LAYERS[1:]), CONFIG)
    assert float(reading.counts(poses)[0]) == 2
    params = jax.tree.map(lambda leaf: leaf[0], reading.init(0, poses)["group0"])
    np.testing.assert_allclose(params["linear0"]["bias"], np.asarray(poses.encodings[1]).mean(axis=0), rtol=1e-5)
    tokens = jnp.zeros((2, 2, 32))
    loss = reading.loss(params, tokens, poses, (jnp.float32(2),))[0]
    alone = reading.loss(params, tokens[1:], jax.tree.map(lambda leaf: leaf[1:], poses), (jnp.float32(2),))[0]
    assert float(loss) == pytest.approx(float(alone))


def encoding(turn=0.0, translation=(0.0, 0.0, 1.0), fields=(1.0, 1.2)):
    """Of a camera turned about its vertical axis by an angle in degrees."""
    half = np.radians(turn) / 2
    return jnp.asarray([*translation, 0.0, np.sin(half), 0.0, np.cos(half), *fields], jnp.float32)


def test_errors_are_the_angles_between_cameras():
    truth = encoding(20)
    found = pose_angles(encoding(23, (0.0, 2.0, 2.0), (1.0, 1.2 + np.radians(4))), truth, jnp.array(True))
    np.testing.assert_allclose(found, [3, 45, 2], rtol=1e-4)
    assert MEASURES == ("rotation", "translation", "field_of_view")
    # A quaternion's sign and length mean nothing, nor does a translation's length.
    factors = jnp.asarray([3.0] * 3 + [-2.0] * 4 + [1.0] * 2)
    np.testing.assert_allclose(pose_angles(truth * factors, truth, jnp.array(True)), [0, 0, 0], atol=1e-3)
    translation, rotation, fields = pose_distances(truth * factors, truth)
    assert (float(translation), float(fields)) == (4, 0) and float(rotation) == pytest.approx(0, abs=1e-6)
    assert np.isnan(pose_angles(truth, encoding(20, (0.0, 0.0, 1e-4)), jnp.array(True))).tolist() == [False, True, False]
    assert np.isnan(pose_angles(truth, truth, jnp.array(False))).tolist() == [False, True, False]


def test_the_cameras_loss_is_of_all_iterations_in_the_models_own_unit():
    truth = jnp.stack([jnp.stack([encoding(view * 20 + number, (0.0, number, 1.0)) for view in range(3)]) for number in range(2)])
    poses, unit = Poses(truth, jnp.array([True, True])), jnp.array([2.0, 5.0])
    in_unit = truth.at[..., :3].multiply(unit[:, None, None])
    assert np.allclose(camera_sums(jnp.stack([in_unit, in_unit]), unit, poses), 0, atol=1e-5)
    # Off by 0.1 and 0.2 in both fields of view, in the first iteration and in the last, and of one view by a unit in its place.
    first, last = in_unit.at[..., 7:].add(0.1), in_unit.at[..., 7:].add(0.2).at[1, 2, 0].add(5.0)
    translation, rotation, fields = camera_sums(jnp.stack([first, last]), unit, poses)
    np.testing.assert_allclose([translation, fields], [1 / 1.8, 6 * (0.8 * 0.02 + 0.08) / 1.8], rtol=1e-4)
    assert float(rotation) == pytest.approx(0, abs=1e-5)
    nothing = unit.at[0].set(0.0)
    sums = camera_sums(jnp.stack([first, last]), nothing, poses._replace(known=jnp.array([False, True])))
    np.testing.assert_allclose([sums[0], sums[2]], [1 / 1.8, 3 * (0.8 * 0.02 + 0.08) / 1.8], rtol=1e-4)
    loss = mean_model_loss(ModelSums(SetSums.zeros(3), (translation, rotation, fields)), (jnp.float32(1),) * 3, jnp.float32(2))
    assert float(loss.total) == pytest.approx(float(translation + rotation + fields) / 6)
    assert list(loss.named()) == [
        "total", "view1", "view2", "view3", "regression1", "regression2", "regression3",
        "camera_total", "camera_translation", "camera_rotation", "camera_field_of_view",
    ]  # fmt: skip
    assert [head.name for head in trained_heads(CONFIG)] == ["camera", "points"]
    assert [head.name for head in trained_heads(dataclasses.replace(CONFIG, head_names=("depth", "points")))] == ["points"]


def test_a_row_whose_tokens_hold_the_cameras_learns_them_and_the_constant_does_not():
    rng = np.random.default_rng(0)
    reading = PoseReading(pose_config(CONFIG, LAYERS[1:]), CONFIG)
    angles, steps = rng.uniform(-40, 40, (24, 2)), rng.normal(0, 0.5, (24, 2, 3))
    truth = jnp.stack([jnp.stack([encoding(a, t) for a, t in zip(*row, strict=True)]) for row in zip(angles, steps, strict=True)])
    mixed = np.einsum("bvi,ij->bvj", np.asarray(truth), rng.normal(size=(9, 32))).astype(np.float32)
    noise = rng.normal(size=mixed.shape).astype(np.float32)
    tokens = {"group0": jnp.stack([jnp.asarray(mixed), jnp.asarray(noise), jnp.zeros_like(mixed)])}
    kept = Kept(tokens, Poses(truth, jnp.ones(24, bool)))
    assert reading.config.rows == {"group0": (*LAYERS[1:], CONSTANT)}
    state = initial_kept_state(reading, RECIPE, kept, 0)
    step = jax.jit(functools.partial(kept_step, reading=reading, recipe=RECIPE, total=lambda tree: tree))
    sample = jax.tree.map(jnp.asarray, batch(24, views=2)._replace(views=None))
    before = kept_errors(state.params, kept, sample, reading=reading)["group0"]
    np.testing.assert_allclose(before[0], before[2], atol=1e-4)  # all begin with the mean camera
    for _ in range(RECIPE.steps):
        state, losses = step(state, kept, sample)
    after = np.asarray(kept_errors(state.params, kept, sample, reading=reading)["group0"]).mean(axis=1)
    assert after[0, 0] < 0.5 and after[0, 1] < 2 and after[2, 0] > 10 and after[2, 1] > 30
    assert set(losses["group0"].named()) == {"total", "translation", "rotation", "field_of_view"}
    np.testing.assert_allclose(losses["group0"].total, sum(list(losses["group0"])[1:]), rtol=1e-5)


def test_pose_probes_read_the_camera_tokens_of_the_later_views():
    layers = LAYERS[1:]
    config = pose_config(CONFIG, layers)
    views = tuple(jnp.asarray(np.random.default_rng(view).normal(size=(2, 11, 32)), jnp.float32) for view in range(3))
    output = BackboneOutput(dict.fromkeys(layers, views), (SHAPE,) * 3, special_tokens=dict.fromkeys(layers, 5))
    tokens = camera_tokens(output, config, CONFIG)["group0"]
    assert tokens.shape == (3, 2, 2, 32) and not np.asarray(tokens[2]).any()
    np.testing.assert_array_equal(tokens[1], np.stack([views[1][:, 0], views[2][:, 0]], axis=1))


def test_models_and_layers_without_a_camera_token_are_refused():
    with pytest.raises(LayerError, match="no layer of this model has one"):
        pose_config(BackboneConfig(), ("decoder.0.mlp",))
    with pytest.raises(
        LayerError, match=r"these layers have none: encoder\.norm; layers that have one: aggregator\.embed … global\.1\.mlp"
    ):
        pose_config(CONFIG, LAYERS)
    with pytest.raises(LayerError, match="no layers to probe"):
        pose_config(CONFIG, ())


def test_a_small_model_is_made_by_its_own_options():
    config, start = starting_point(BackboneOptions(family="vggt", views=4, dec_depth=6, image_size="56x42"))
    assert start is None and config.img_size == (42, 56) and config.dpt_layers == (1, 2, 4, 5) and config.head_names == ("camera", "points")
    assert config == dataclasses.replace(config, enc_depth=3, embed_dim=192, num_heads=6, mlp_ratio=3)
    for given, error, told in (
        ({"enc_width": 64}, OptionError, "a vggt does not take --enc-width; its options are --enc-depth"),
        ({"head": "dpt"}, OptionError, "a vggt does not take --head"),
        ({"start": "model"}, OptionError, "--family cannot be combined with --start"),
        ({"image_size": "128"}, OptionError, "multiples of 14"),
        ({"dec_width": 100}, ConfigError, "must be a multiple of 24"),
    ):
        with pytest.raises(error, match=told):
            starting_point(BackboneOptions(family="vggt", **given))
    assert starting_point(BackboneOptions(family="mast3r", dec_depth=4)) == starting_point(BackboneOptions(head="catmlp+dpt", dec_depth=4))


def test_a_camera_from_scratch_is_not_turned_and_has_fields_of_view_of_a_radian():
    config, tokens = dataclasses.replace(CONFIG, camera_iterations=4), jnp.zeros((1, 2, 64))
    head = CameraHead(config)
    params = head.init(jax.random.key(0), tokens)["params"]
    assert params["pose"]["fc2"]["bias"].tolist() == [0, 0, 0, 0, 0, 0, 0.25, 0.25, 0.25]
    params["pose"]["fc2"]["kernel"] *= 0
    *_, last = head.apply({"params": params}, tokens).encodings
    np.testing.assert_allclose(last, np.broadcast_to([0, 0, 0, 0, 0, 0, 1, 1, 1], (1, 2, 9)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.quick
def test_two_devices_with_two_parts_each_take_the_step_of_all_sets_together():
    state, sample = initial_backbone_state(moving(), RECIPE), batch(4)
    step = functools.partial(backbone_step, module=module(), recipe=RECIPE, example_of=example_of)
    whole, losses = jax.jit(functools.partial(step, total=lambda tree: tree))(state, sample)
    divided = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), sample)
    of_device = functools.partial(step, total=total, micro_batches=2)
    both, of_both = jax.jit(jax.vmap(of_device, in_axes=(None, 0), axis_name=AXIS))(state, divided)
    assert losses[MODEL].cameras is not None and float(losses[MODEL].cameras.total[0]) > 0
    for one, other in zip(jax.tree.leaves(losses), jax.tree.leaves(of_both), strict=True):
        np.testing.assert_allclose(other, [one] * 2, rtol=1e-4)
    of_one = jax.tree.map(lambda leaf: leaf[0], both)
    taken, in_parts = (jax.tree.map(jnp.subtract, new.params["camera_head"], state.params["camera_head"]) for new in (whole, of_one))
    for one, other in zip(jax.tree.leaves(taken), jax.tree.leaves(in_parts), strict=True):
        # A gradient of rounding errors alone is blown up by Adam to a whole step.
        assert np.median(np.abs(one - other)) <= 1e-3 * max(float(jnp.abs(one).max()), 1e-12)


@pytest.mark.slow
def test_the_model_itself_learns_and_views_are_trained_together():
    recipe = Recipe(30, 2, learning_rate=3e-3)
    state = initial_backbone_state(moving(), recipe)
    step = jax.jit(functools.partial(backbone_step, module=module(), recipe=recipe, example_of=example_of, total=lambda tree: tree))
    losses, cameras, rotations = [], [], []
    for _ in range(recipe.steps):
        state, loss = step(state, batch(2))
        losses.append(float(sum(view[0] for view in loss[MODEL].regressions)))
        cameras.append(float(loss[MODEL].cameras.total[0]))
        rotations.append(float(loss[MODEL].cameras.rotation[0]))
    # Measured: 3.44 → 1.00, 1.97 → 1.35 and 1.07 → 0.03. What is left of the cameras' is a field of view whose ReLU has gone below 0, where
    # it has no gradient: from these moved parameters, and at this learning rate, a start at a radian does not prevent it.
    assert losses[-1] < 0.4 * losses[0] and cameras[-1] < 0.75 * cameras[0] and rotations[-1] < 0.1 * rotations[0]
    assert len(loss[MODEL].views) == 3
