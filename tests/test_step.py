"""The step: the same result in every layout, each probe on its own, and what happens to one that diverges."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import step_cases
from tests.step_cases import LAYERS, WAYS, Case, backbone, batch, one_device_step, take_steps
from und3rstand_jax.train.step.loops import in_rows
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, Recipe, matrices, optimizer, schedule

pytestmark = [pytest.mark.filterwarnings("error::DeprecationWarning"), pytest.mark.quick]


@pytest.fixture(scope="module")
def usual():
    """Three steps of all layers on this process's device."""
    return take_steps(Case())


def assert_close(one, other, tolerance=1e-5):
    """Every array equal relative to its norm. Single elements are no judge: Adam divides gradients that are all rounding by their size."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), jax.tree_util.keystr(path)


def spawn(out, devices, way, *distributed):
    """The steps in a process of its own, in which whatever JAX deprecates of what we use is an error."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-m", "tests.step_cases", str(out), way, *distributed]
    return subprocess.Popen(command, env=environment)


def read(file):
    arrays = np.load(file)

    def numbered(kind):
        return [arrays[f"{kind}{i}"] for i in range(sum(name.startswith(kind) for name in arrays))]

    return numbered("loss"), numbered("state"), int(arrays["devices"])


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_by_pmap_and_by_shard_map(tmp_path, usual):
    found = {}
    for way in WAYS:
        assert spawn(tmp_path / f"{way}.npz", 8, way).wait() == 0
        losses, state, devices = found[way] = read(tmp_path / f"{way}.npz")
        assert devices == 8
        assert_close(jax.tree.leaves(usual[0]), losses)
        assert_close(jax.tree.leaves(usual[1]), state)
    assert_close(found["pmap"][0], found["shard_map"][0], 1e-6)
    assert_close(found["pmap"][1], found["shard_map"][1], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_with_two_devices_each_give_what_one_gives(way, tmp_path, usual):
    coordinator = f"localhost:{free_port()}"
    running = [spawn(tmp_path / f"{i}.npz", 2, way, coordinator, "2", str(i)) for i in (0, 1)]
    assert [process.wait() for process in running] == [0, 0]
    for i in (0, 1):
        losses, state, devices = read(tmp_path / f"{i}.npz")
        assert devices == 4
        assert_close(jax.tree.leaves(usual[0]), losses)
        assert_close(jax.tree.leaves(usual[1]), state)


def test_a_layer_alone_trains_as_it_does_among_others(usual):
    losses, state = take_steps(Case(layers=("decoder.0.cross_attn",)))
    place = LAYERS.index("decoder.0.cross_attn") - 1  # the encoder's layer is a group of its own
    together = jax.tree.map(lambda leaf: leaf[place : place + 1], usual[1].groups["group1"])
    assert_close(together, state.groups["group0"])
    assert_close(
        [jax.tree.map(lambda leaf: leaf[place : place + 1], loss["group1"]) for loss in usual[0]], [loss["group0"] for loss in losses]
    )


@pytest.mark.parametrize(
    "changes", [{"side_by_side": 2}, {"micro_batches": 4}, pytest.param({"micro_batches": 2, "side_by_side": 4}, marks=pytest.mark.slow)]
)
def test_side_by_side_and_in_parts_is_the_same(usual, changes):
    losses, state = take_steps(Case(**changes))
    assert_close(usual[0], losses)
    assert_close(usual[1], state)


@pytest.mark.parametrize("layers", [(), (3,)])
def test_a_gradient_is_laid_out_in_rows_on_tpus_alone_and_never_changed(layers):
    gradient = {"square": np.ones((256, 128)), "narrow": np.ones((256, 100)), "bias": np.ones(128)}
    gradient = {name: np.float32(np.arange(array.size).reshape(array.shape)) for name, array in gradient.items()}
    stacked = jax.tree.map(lambda array: np.broadcast_to(array, (*layers, *array.shape)), gradient)
    laid_out = jax.jit(jax.vmap(in_rows) if layers else in_rows)
    jax.tree.map(np.testing.assert_array_equal, laid_out(stacked), stacked)
    on_tpu, on_cpu = (laid_out.trace(stacked).lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu"))
    assert (on_tpu.count("LayoutConstraint"), on_cpu.count("LayoutConstraint")) == (1, 0)


def test_sets_of_three_views_in_parts_give_the_same_step():
    whole, parts = (
        one_device_step(case)(case.initial_state(), backbone(), batch(0, views=3))
        for case in (Case(LAYERS[3:4], views=3), Case(LAYERS[3:4], views=3, micro_batches=4))
    )
    assert len(whole[1]["group0"].views) == 3
    assert_close(whole[1], parts[1])
    assert_close(whole[0], parts[0])
    # The loss is the sum of the views', each of which counts.
    losses = whole[1]["group0"]
    np.testing.assert_allclose(losses.total, sum(losses.views), rtol=1e-6)
    assert min(float(view[0]) for view in losses.views) > 0


def test_the_probes_learn():
    few = Case(layers=("decoder.1.mlp",), steps=60)
    step, state = one_device_step(few), few.initial_state(0)
    losses = []
    for _ in range(60):
        state, loss = step(state, backbone(), batch(0))
        losses.append(float(sum(view[0] for view in loss["group0"].regressions)))
    assert losses[-1] < 0.75 * losses[0]  # depths are noise: this much is in the mean of each pixel alone
    assert int(state.step) == 60


def poisoned(state, place):
    """The state with one weight of one probe not a number."""
    params = state.groups["group1"].params
    kernel = params["linear1"]["kernel"].at[place, 0, 0].set(np.nan)
    params = params | {"linear1": params["linear1"] | {"kernel": kernel}}
    return state._replace(groups=state.groups | {"group1": state.groups["group1"]._replace(params=params)})


def test_a_probe_that_diverges_goes_back_to_its_last_good_parameters_and_the_others_go_on():
    step, state = one_device_step(Case()), Case().initial_state()
    for number in range(2):
        state, _ = step(state, backbone(), batch(number))
    # After two good steps one update goes wrong, as a far too large one would.
    good = state.groups["group1"].last_good
    clean, _ = step(state, backbone(), batch(2))
    bad, loss = step(poisoned(state, 2), backbone(), batch(2))
    assert bad.groups["group1"].frozen_at.tolist() == [NOT_FROZEN, NOT_FROZEN, 2, NOT_FROZEN]
    assert np.isnan(loss["group1"].total).tolist() == [False, False, True, False]
    for name in ("params", "last_good"):
        frozen = jax.tree.map(lambda leaf: leaf[2], getattr(bad.groups["group1"], name))
        assert_close(jax.tree.map(lambda leaf: leaf[2], good), frozen, 0)
    others = [0, 1, 3]
    for name in ("group0", "group1"):
        rows = others if name == "group1" else [0]
        assert_close(*(jax.tree.map(lambda leaf, rows=rows: leaf[np.array(rows)], s.groups[name]) for s in (clean, bad)), 0)
    # Frozen it stays, with a finite loss; the others still move.
    later, loss = step(bad, backbone(), batch(3))
    assert later.groups["group1"].frozen_at.tolist() == [NOT_FROZEN, NOT_FROZEN, 2, NOT_FROZEN]
    assert np.isfinite(loss["group1"].total).all()
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).reshape(4, -1).max(axis=1) > 0, bad.groups["group1"].params, later.groups["group1"].params
    )
    assert np.stack(jax.tree.leaves(moved)).any(axis=0).tolist() == [True, True, False, True]


def test_pairs_without_a_valid_pixel_move_nothing_by_nan():
    case = Case(layers=("decoder.0.mlp",))
    empty = batch(0)
    one, two = empty.views
    blank = one._replace(depth=np.zeros_like(one.depth))
    state, loss = one_device_step(case)(case.initial_state(), backbone(), empty._replace(views=(blank, two)))
    assert float(loss["group0"].views[0][0]) == 0 and np.isfinite(loss["group0"].views[1]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.groups["group0"].params))
    assert state.groups["group0"].frozen_at.tolist() == [NOT_FROZEN]


def test_the_schedule_warms_up_and_falls_as_a_cosine():
    rate = schedule(Recipe(steps=110, warmup_steps=10, learning_rate=1e-4, final_learning_rate=1e-6))
    assert [float(rate(step)) for step in (0, 4, 9, 10)] == pytest.approx([1e-5, 5e-5, 1e-4, 1e-4])
    assert float(rate(60)) == pytest.approx((1e-4 + 1e-6) / 2)
    assert float(rate(110)) == pytest.approx(1e-6)
    assert float(schedule(Recipe(steps=10, warmup_steps=0))(0)) == pytest.approx(1e-4)


def test_weight_decay_is_taken_on_matrices_alone():
    params = {
        "linear0": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)},
        "norm0": {"scale": np.ones(2, np.float32)},
    }
    assert jax.tree.leaves(matrices(params)) == [False, True, False]
    transform = optimizer(Recipe(steps=1, warmup_steps=0, learning_rate=0.1, weight_decay=0.5))
    updates, _ = transform.update(jax.tree.map(np.zeros_like, params), transform.init(params), params)
    assert np.allclose(updates["linear0"]["kernel"], -0.05)
    assert not updates["linear0"]["bias"].any() and not updates["norm0"]["scale"].any()


def test_a_probes_start_depends_on_its_layer_and_the_seed_alone():
    several, alone = (Case(layers=layers).initial_state().params for layers in (LAYERS, LAYERS[3:4]))
    again, other = (Case(layers=LAYERS[3:4]).initial_state(seed).params for seed in (5, 6))
    assert_close(jax.tree.map(lambda leaf: leaf[2:3], several["group1"]), alone["group0"], 0)
    assert_close(alone, again, 0)
    kernels = [tree["group0"]["linear0"]["kernel"] for tree in (alone, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    assert np.std(kernels[0]) == pytest.approx(1 / np.sqrt(step_cases.CONFIG.dec_embed_dim), rel=0.1)
