"""The step for TPUs, compiled by libtpu on a machine without one."""

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


@pytest.mark.parametrize(("topology", "devices", "hosts"), [("v5e:2x2", 4, "1 host"), ("v5e:4x4", 16, "4 hosts")])
def test_the_real_step_fits_a_chip_of_16_gb_at_the_default_batch(topology, devices, hosts):
    text = plan("--topology", topology, "--dtype", "bfloat16", "--quick")
    subject = f"""{topology}: {devices} devices (TPU v5 lite), {hosts}
36 probes on naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt in bfloat16, 512×512 pixels
{4 * devices} pairs a step, 4 on each device
"""
    assert text.startswith(subject)
    fits = re.search(r"total +([\d.]+)\n  of 16 GB: fits, ([\d.]+) GB to spare", text)
    assert fits is not None, text
    total, spare = map(float, fits.groups())
    # Parameters, optimiser and tokens alone take 3.3 GB; 4.2 were measured.
    assert 3.3 < total < 5
    assert total + spare == pytest.approx(16, abs=0.02)
    kinds = dict(re.findall(r"^  ([a-z].*?)  +([\d.]+)$", text[: fits.start()], re.MULTILINE))
    assert sum(map(float, kinds.values())) == pytest.approx(total, abs=0.05)
    assert (float(kinds["probes"]), float(kinds["activations: captured tokens"])) == (0.45, 0.45)
    assert re.search(r"^Estimate: 0\.\d+ s a step", text, re.MULTILINE)


def test_a_batch_that_does_not_fit_is_refused(tmp_path):
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
    of_a_tiny_one = ("--layers", "decoder.0.mlp", "--backbone", str(tmp_path), "--batch-size", str(4 * 100_000))
    text = plan("--topology", "v5e:2x2", *of_a_tiny_one, "--quick")
    assert re.search(r"400000 pairs a step, .*\n.*\n.*\n  does not compile for 16 GB: .*exceeds available HBM", text)
