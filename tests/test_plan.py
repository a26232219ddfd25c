"""`python -m train plan`: what is counted, what is searched for, and what is said."""

import dataclasses
import functools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.plain_scenes import render_plain_scenes
from tests.strict import one_document
from tests.tiny import NO_PROVENANCE
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.commands.train import main
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.text import to_json
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.plan.chips import TPUS, Chip
from und3rstand_jax.train.plan.memory import Memory, step_memory
from und3rstand_jax.train.plan.planning import MOST_COMPILATIONS, Largest, Plan, largest_batch, make_plan
from und3rstand_jax.train.plan.shapes import step_arguments, trunk
from und3rstand_jax.train.plan.text import plan_json, plan_text
from und3rstand_jax.train.plan.topology import Topology, chip_of, parse_topology, prepare_environment, topology_devices
from und3rstand_jax.train.plan.work import Count, Part, count, seconds, step_parts
from und3rstand_jax.train.probes_task import ProbesTask
from und3rstand_jax.train.step.probe_step import captured_tokens

CONFIG = BackboneConfig(
    img_size=(96, 96), enc_embed_dim=128, enc_depth=2, enc_num_heads=2, dec_embed_dim=64, dec_depth=2, dec_num_heads=2, head_type="linear"
)
SHAPE = CONFIG.img_size
TOKENS, ENC, DEC = 36, 128, 64


@pytest.fixture
def plain_scenes(monkeypatch):
    render_plain_scenes(monkeypatch)


@pytest.fixture
def backbone(tmp_path):
    """A converted checkpoint as far as its config: planning reads no weights."""
    write_checkpoint_info(tmp_path, CheckpointInfo(backbone=CONFIG, provenance={"backbone": NO_PROVENANCE}))
    return str(tmp_path)


def a_task(accumulate=1, **module):
    task = ProbesTask.create(TrainOptions(steps=100, accumulate=accumulate, augment=False), CONFIG, devices=1)
    return dataclasses.replace(task, module=task.module.clone(**module))


def linear(tokens, wide_in, wide_out):
    return 2 * tokens * wide_in * wide_out


def backbone_flops(pairs):
    """Products of the trunk on both views of each pair, by hand."""
    n = TOKENS

    def attention_and_mlp(dim):
        return linear(n, dim, 3 * dim) + 2 * linear(n, dim, n) + linear(n, dim, dim) + 2 * linear(n, dim, 4 * dim)

    encoder = linear(n, 16 * 16 * 3, ENC) + CONFIG.enc_depth * attention_and_mlp(ENC)
    cross = 4 * linear(n, DEC, DEC) + 2 * linear(n, DEC, n)
    return 2 * pairs * (encoder + linear(n, ENC, DEC) + CONFIG.dec_depth * (attention_and_mlp(DEC) + cross))


def test_every_round_of_a_loop_is_counted_and_only_the_dearest_branch():
    def looped(x, w):
        def body(x, i):
            return jax.lax.cond(i > 2, lambda x: jnp.tanh(x @ w @ w), lambda x: x @ w, x), None

        return jax.lax.scan(body, x, jnp.arange(5))[0]

    found = count(jax.jit(looped), jax.ShapeDtypeStruct((3, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, 4), jnp.bfloat16))
    assert found.products == {("bfloat16", "default"): 5 * 2 * (2 * 3 * 4 * 4)}
    assert found.traffic == 5 * 2 * 2 * (3 * 4 + 4 * 4 + 3 * 4)
    assert found.elementwise == 5 * (3 * 4 + 1)  # tanh, and the comparison


def test_float32_products_are_told_apart_by_precision():
    def both(x):
        return jnp.matmul(x, x, precision="highest") + jnp.matmul(x, x, precision="default")

    assert count(both, jax.ShapeDtypeStruct((4, 4), jnp.float32)).products == {("float32", "highest"): 128, ("float32", "default"): 128}


def test_a_convolution_counts_what_each_output_sums():
    def conv(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = count(conv, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32))
    assert found.flops == (4 * 4 * 5) * 2 * (2 * 2 * 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_flops_of_a_step_are_those_computed_by_hand(plain_scenes, accumulate):
    task = a_task(accumulate)
    parts = {part.name.split(",")[0]: part for part in step_parts(task, step_arguments(task, 4), devices=4)}
    assert parts["backbone"].count.flops == backbone_flops(4)
    # A product's gradient takes two products of its size, but for the first layer's, whose input needs none. The norm before it is folded
    # into it, which takes products of a single row, its bias, in every micro-batch.
    widths = (DEC, DEC, DEC, DEC, DEC, 1024)
    forward = sum(linear(2 * 4 * TOKENS, *pair) for pair in zip(widths, widths[1:], strict=False))
    folding = accumulate * 3 * linear(1, DEC, DEC)
    assert parts["probes"].count.products == {("float32", "highest"): 6 * (3 * forward - linear(2 * 4 * TOKENS, DEC, DEC) + folding)}
    weights = 6 * (sum(a * b + b for a, b in zip(widths, widths[1:], strict=False)) + 2 * DEC)
    assert parts["gradients of all devices"].exchanged == 2 * 3 / 4 * 4 * weights
    assert parts["updates of the probes"].count.traffic == pytest.approx(2 * 4 * 4 * weights, rel=1e-3)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_parts_are_all_there_is_to_a_step(plain_scenes, accumulate):
    task = a_task(accumulate, attention="xla")
    arguments = step_arguments(task, 4)
    parts = sum((part.count for part in step_parts(task, arguments, devices=1)), Count())
    step = count(functools.partial(task.step(SHAPE), total=lambda tree: tree), *arguments)
    assert parts.flops == step.flops
    assert parts.elementwise == pytest.approx(step.elementwise, rel=0.03)


def test_the_count_agrees_with_xlas_own_of_a_program_without_loops(plain_scenes):
    task = a_task(attention="xla", unroll=True)
    arguments = step_arguments(task, 1)
    example = jax.eval_shape(task.example_of(SHAPE), arguments.batch)
    run = functools.partial(captured_tokens, task.module, task.probes)
    compiled = jax.jit(run).lower(arguments.backbone, example).compile()
    assert count(run, arguments.backbone, example).flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.1)


def test_the_trunk_is_counted_as_it_is_kept_for_training():
    params = trunk(DUSt3R(CONFIG, dtype=jnp.bfloat16))
    assert sorted(params) == ["decoder", "encoder"]
    dtypes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert dtypes["kernel"] == jnp.bfloat16
    assert {dtypes[name] for name in dtypes if name != "kernel"} == {np.dtype("float32")}


@pytest.mark.parametrize("limit", [1000, 1003, 4000, 10_000])
@pytest.mark.parametrize("start", [1, 4, 64])
def test_the_search_finds_the_largest_batch_in_few_compilations(limit, start):
    compiled = []

    def measure(pairs):
        compiled.append(pairs)
        return 500 + 20 + 37 * pairs

    found = largest_batch(measure, limit, 500, start, 520 + 37 * start)
    best = (limit - 520) // 37
    assert (found.pairs, found.total, found.too_many) == (best, 520 + 37 * best, best + 1)
    assert len(set(compiled)) == len(compiled) < MOST_COMPILATIONS


def test_the_search_trusts_nothing_that_was_not_compiled():
    compiled = {4: 900.0}

    def measure(pairs):
        compiled[pairs] = 500 + 100 * pairs if pairs <= 11 else math.inf  # the compiler gives up long before the line says so
        return compiled[pairs]

    found = largest_batch(measure, 3000, 500, 4, 900)
    assert compiled[found.pairs] == found.total <= 3000
    assert len(compiled) <= MOST_COMPILATIONS
    assert compiled[found.too_many] > 3000


def test_the_search_goes_down_from_a_batch_that_does_not_fit():
    found = largest_batch(lambda pairs: 100 + 10 * pairs if pairs < 4 else math.inf, 125, 0, 8, math.inf)
    assert (found.pairs, found.too_many) == (2, 3)
    nothing = largest_batch(lambda pairs: math.inf, 125, 0, 8, math.inf)
    assert (nothing.pairs, nothing.too_many) == (0, 1)


def test_the_search_keeps_to_multiples_of_the_parts():
    found = largest_batch(lambda pairs: 10 * pairs, 105, 0, 3, 30, unit=3)
    assert (found.pairs, found.too_many) == (9, 12)


def test_names_of_topologies_are_read():
    v5e = parse_topology("v5e:2x4")
    assert (v5e.platform, v5e.generation, v5e.bounds) == ("tpu", "v5e", (2, 4))
    assert parse_topology("v5p:2x2x1").bounds == (2, 2, 1)
    assert parse_topology("cpu").platform == "cpu"
    for wrong in ("v5e", "v5e:", "v5e:0x2", "v5e:2", "v2:2x2", "tpu", "v5e:2x2 ", ""):
        with pytest.raises(UserError, match="v5e:2x2 "):
            parse_topology(wrong)


@pytest.mark.parametrize(("name", "accelerator"), [("v5e:4x4", "v5litepod-16"), ("v6e:2x2", "v6e-4"), ("v4:2x2x2", "v4-16")])
def test_the_environment_says_what_is_compiled_for_and_keeps_jax_on_the_cpu(monkeypatch, name, accelerator):
    environment = {"JAX_PLATFORMS": "tpu"}
    monkeypatch.setattr("os.environ", environment)
    prepare_environment(parse_topology(name))
    assert environment == {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def test_a_missing_compiler_or_device_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'und3rstand_jax\[tpu\]'"):
        topology_devices(parse_topology("v5e:2x2"))
    if not any(device.platform == "gpu" for device in jax.devices()):
        with pytest.raises(UserError, match="has no gpu, only cpu"):
            topology_devices(parse_topology("gpu"))


def test_a_parts_least_time_is_that_of_what_takes_longest():
    chip = TPUS["v5e"]
    product = Counter({("bfloat16", "default"): 10**12})
    assert seconds(Part("", Count(product)), chip) == pytest.approx(1 / 197)
    exact = Count(Counter({("float32", "highest"): 10**12, ("float32", "high"): 10**12}))
    assert seconds(Part("", exact), chip) == pytest.approx((6 + 3) / 197)
    assert seconds(Part("", Count(product, traffic=819 * 10**9)), chip) == pytest.approx(1)
    assert seconds(Part("", Count(traffic=10**9), exchanged=400e9), chip) == pytest.approx(2)


def test_gpus_are_known_by_the_names_their_driver_gives_them():
    gpu = Topology("gpu", "gpu")
    h100, h200 = chip_of(gpu, "NVIDIA H100 80GB HBM3"), chip_of(gpu, "NVIDIA H200")
    assert h100 is not None and h200 is not None
    assert h100.bfloat16 == h200.bfloat16 and h100.memory < h200.memory
    assert h100.rate("float32", "highest") < h100.rate("float32", "high") < h100.rate("bfloat16", "default")
    assert chip_of(gpu, "NVIDIA H100 PCIe") is None


@pytest.mark.slow
def test_kinds_of_memory_sum_to_what_the_compiler_says(plain_scenes, backbone, monkeypatch):
    analyses = []

    def spy(compiled, *args):
        analyses.append(compiled.memory_analysis())
        return step_memory(compiled, *args)

    monkeypatch.setattr("und3rstand_jax.train.plan.memory.step_memory", spy)
    # Photos from files, of which nothing but the batch's shapes may matter: there is no such folder.
    files = {"data": ("co3d:/nowhere",), "val_data": ("blendedmvs:/nowhere",)}
    options = TrainOptions(backbone=backbone, resolution=("96x96",), layers="decoder.*.mlp", batch_size=3, **files)
    memory, found = make_plan(options, parse_topology("cpu"), quick=True).tried[3], analyses[0]
    # decoder.norm, behind every probed layer, and the scenes' numbers lie in memory, and the program does not have them.
    unread = 4 * (2 * DEC) + 4 * 3
    program = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    assert memory.total == program + found.generated_code_size_in_bytes + unread
    assert memory.batch == 3 * (2 * (96 * 96 * (3 + 4) + 4 * (9 + 16)) + 8)
    assert memory.probes == memory.last_good == pytest.approx(memory.optimizer / 2, rel=1e-3)
    assert memory.tokens == 2 * 2 * 3 * TOKENS * DEC * 4
    assert memory.padding == 0


@pytest.mark.slow
def test_the_command_prints_a_plan_whose_lines_add_up(plain_scenes, backbone, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["plan", "--topology", "cpu", "--backbone", backbone, "--resolution", "96x96", "--batch-size", "2", "--quick"]) == 0
    text, progress = capsys.readouterr()
    assert "6 probes on" in text and "2 pairs a step" in text
    table = text[text.index("Memory of each device") : text.index("Work of each device")]
    figures = {label: float(value) for label, value in re.findall(r"^  (\S.*?)  +([\d.]+)$", table, re.MULTILINE)}
    total = figures.pop("total")
    assert len(figures) == len(dataclasses.fields(Memory))
    assert sum(figures.values()) == pytest.approx(total, abs=0.005 * len(figures) + 0.005)
    assert "fits" in table and "No estimate of the time" in text and "Largest" not in text
    assert progress.startswith("compiling the step for cpu, 2 pairs on each device")


def test_a_plan_says_what_fits_and_how_long_a_step_takes_at_least():
    options = TrainOptions(batch_size=8, steps=7200, resolution=("96x96", "64x64"), accumulate=2)
    plan = Plan(
        task=ProbesTask.create(options, CONFIG, devices=4),
        topology=parse_topology("v5e:2x2"),
        device_kind="TPU v5 lite",
        devices=4,
        hosts=1,
        pairs=2,
        limit=1e9,
        tried={2: Memory(*[70_000_000] * 10), 9: Memory(*[90_000_000] * 10), 12: "a crash"},
        largest=Largest(9, 0.9e9, 10),
        parts=[Part("backbone", Count(Counter({("float32", "highest"): 5 * 10**11})))],
        chip=Chip("Abacus", 1e9, 1e9, 1e9, 1e12, {"highest": 1e12}),
    )
    numbers = one_document(to_json(plan_json(plan)))
    assert numbers["memory_bytes"]["total"] == 700_000_000 and numbers["pairs_per_device"] == 2 and numbers["resolution"] == "96x96"
    assert numbers["tried"][2] == {"pairs_per_device": 12, "total_bytes": None, "does_not_compile": "a crash"}
    assert numbers["largest"] == {"pairs_per_device": 9, "total_bytes": 0.9e9, "too_many": 10}
    assert numbers["parts"][0]["product_flops"] == [{"dtype": "float32", "precision": "highest", "flops": 5 * 10**11}]
    assert numbers["estimate"] == {"seconds_per_step": 0.5, "seconds": 3600.0, "steps": 7200}
    text = plan_text(plan)
    assert text.startswith("v5e:2x2: 4 devices (TPU v5 lite), 1 host\n6 probes on ")
    assert "96×96 pixels, the largest of 2 resolutions\n8 pairs a step, 2 on each device, in 2 parts\n" in text
    assert re.search(r"total +700.00\n  of 1 GB: fits, 300 MB to spare", text)
    assert "Largest batch that fits: 9 pairs on each device, --batch-size 36\n  verified by compiling it: 900 MB of 1 GB\n" in text
    assert "  10 do not, by extrapolation" in text
    assert "Estimate: 0.5 s a step, 16 pairs/s, 1.0 h for 7200 steps\n  from published peaks: Abacus, 1 TFLOP/s in bfloat16" in text
    assert "real steps take longer" in text
    assert "of 1 MB: does not fit, 699 MB too much" in plan_text(dataclasses.replace(plan, limit=1e6))
    assert "  12 do not: a crash\n" in plan_text(dataclasses.replace(plan, largest=Largest(9, 0.9e9, 12)))
    refused = plan_text(dataclasses.replace(plan, tried={2: "no room"}, largest=Largest(0, 0, 1)))
    assert "does not compile for 1 GB: no room" in refused and "none was found, down to 1 pair on each device" in refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v9:2x2"], "v5e:2x2"),
        (["--topology", "cpu", "--batch-size", "0"], "--batch-size"),
        (["--topology", "cpu", "--attention", "cudnn"], "NVIDIA"),
        (["--topology", "cpu", "--layers", "decoder.9.mlp"], "decoder.9.mlp"),
        (["--topology", "cpu", "--data", "co3d"], "co3d:DIR"),
    ],
)
def test_options_that_cannot_be_met_are_one_line_on_stderr(backbone, monkeypatch, capsys, options, message):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["plan", *options, "--backbone", backbone]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr
