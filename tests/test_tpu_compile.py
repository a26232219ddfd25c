"""The step for TPUs, compiled by libtpu on a machine without one."""

import json
import re
import subprocess
import sys

import pytest

from tests.tiny import NO_PROVENANCE
from und3rstand_jax.checkpoint.format import CheckpointInfo, write_checkpoint_info
from und3rstand_jax.model.dust3r.config import BackboneConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="libtpu, the compiler, is for Linux alone"),
]


def plan(*options):
    """What the command prints, in a process of its own: JAX and libtpu read the environment when they start."""
    done = subprocess.run([sys.executable, "-m", "train", "plan", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def memory_in(text):
    """Gigabytes by kind, with their total, of a plan that fits into 16."""
    fits = re.search(r"total +([\d.]+)\n  of 16 GB: fits, ([\d.]+) GB to spare", text)
    assert fits is not None, text
    total, spare = map(float, fits.groups())
    assert total + spare == pytest.approx(16, abs=0.02)
    found = re.findall(r"^  ([a-z].*?)  +([\d.]+)$", text[: fits.start()], re.MULTILINE)
    kinds = {name: float(value) for name, value in found}
    assert sum(kinds.values()) == pytest.approx(total, abs=0.05)
    return kinds | {"total": total}


def test_the_real_step_fits_a_chip_of_16_gb_at_the_default_batch():
    text = plan("--topology", "v5e:2x2", "--dtype", "bfloat16", "--quick")
    assert text.startswith("""v5e:2x2: 4 devices (TPU v5 lite), 1 host
36 probes on naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt in bfloat16, 512×512 pixels
16 pairs a step, 4 on each device
""")
    memory = memory_in(text)
    # Parameters, optimiser and tokens alone take 3.3 GB; 4.2 were measured.
    assert 3.3 < memory["total"] < 5
    assert (memory["probes"], memory["activations: captured tokens"]) == (0.45, 0.45)
    assert re.search(r"^Estimate: 0\.\d+ s a step", text, re.MULTILINE)


def test_probes_on_all_layers_of_vggt_1b_fit_a_chip_of_16_gb_with_four_views():
    step = ("--backbone", "facebook/VGGT-1B", "--layers", "all", "--views", "4", "--batch-size", "4", "--dtype", "bfloat16")
    text = plan("--topology", "v5e:2x2", *step, "--quick")
    assert text.startswith("""v5e:2x2: 4 devices (TPU v5 lite), 1 host
96 probes on facebook/VGGT-1B in bfloat16, 518×518 pixels
4 sets a step, 1 on each device

Memory of each device at 1 set of 4 views,""")
    memory = memory_in(text)
    # 96 probes of 5.0 million parameters; the trunk's 909 million, and 96 · 4 · 1369 tokens of 1024, in bfloat16.
    names = ("probes", "probes, the copy of the last good ones", "optimiser", "backbone, without heads", "activations: captured tokens")
    assert [memory[name] for name in names] == [1.92, 1.92, 3.84, 1.82, 1.08]
    # What does not grow with the layers: 1.4 GB were measured. A copy of the state's kernels, in another layout, would add 6.4, and tokens
    # that are stacked in float32 first another 2.2.
    assert memory["other activations, temporaries"] < 2


@pytest.fixture
def of_a_tiny_one(tmp_path):
    """Options of a probe on a model that compiles within seconds."""
    config = BackboneConfig(
        img_size=(96, 96),
        enc_embed_dim=64,
        enc_depth=2,
        enc_num_heads=2,
        dec_embed_dim=64,
        dec_depth=2,
        dec_num_heads=2,
        head_type="linear",
    )
    write_checkpoint_info(tmp_path, CheckpointInfo(backbone=config, provenance={"backbone": NO_PROVENANCE}))
    return "--layers", "decoder.0.mlp", "--backbone", str(tmp_path), "--quick"


def test_a_step_on_several_hosts_compiles(of_a_tiny_one):
    planned = json.loads(plan("--topology", "v5e:4x4", *of_a_tiny_one, "--batch-size", "32", "--json"))
    assert (planned["devices"], planned["hosts"], planned["pairs_per_device"]) == (16, 4, 2)
    memory = planned["memory_bytes"]
    # A norm's scale and bias, layers from 64 by way of 64 to 16² pixels of 4 numbers, and the step counts.
    probe = 4 * (2 * 64 + 4 * (64 * 64 + 64) + 64 * 1024 + 1024)
    assert memory["probes"] == memory["last_good"] == probe and 2 * probe < memory["optimizer"] < 2 * probe + 100
    assert probe < memory["total"] < 1e9
    exchanged = {part["name"]: part["exchanged_bytes"] for part in planned["parts"]}
    # Of its gradients, each of 16 devices sends 15 sixteenths twice.
    assert max(exchanged.values()) == pytest.approx(2 * 15 / 16 * probe, rel=0.01)


def test_a_batch_that_does_not_fit_is_refused(of_a_tiny_one):
    text = plan("--topology", "v5e:2x2", *of_a_tiny_one, "--batch-size", str(4 * 100_000))
    assert re.search(r"400000 pairs a step, .*\n.*\n.*\n  does not compile for 16 GB: .*exceeds available HBM", text)
