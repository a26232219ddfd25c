"""The code of docs/coming_from_pytorch.md runs as it stands, on a tiny checkpoint under the published one's name."""

import contextlib
import io

import jax
import numpy as np
import pytest
from PIL import Image

from tests.test_recipes import ROOT
from tests.tiny import save_backbone, save_probes

PAGE = ROOT / "docs" / "coming_from_pytorch.md"


def blocks():
    """The page's blocks of Python, in order."""
    return [part.partition("\n```")[0] for part in PAGE.read_text().split("\n```python\n")[1:]]


def promised(block):
    """What stands behind the `#` of its print statements."""
    return [line.partition("  # ")[2].strip() for line in block.splitlines() if line.startswith("print(")]


@pytest.mark.slow
@pytest.mark.quick
def test_the_page_s_code_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.setenv("UND3RSTAND_JAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "jgaubil" / "und3rstand-dust3r-512-dpt"
    save_probes(folder, save_backbone(tmp_path / "backbone"))
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    said = 0
    for block in blocks():
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            # Smaller photos than the published model takes: the code is the same.
            exec(compile(block.replace('.jpg")', '.jpg", size=32)'), str(PAGE), "exec"), names)
        if "for layer_id, (pred1, pred2)" in block:
            layers = out.getvalue().splitlines()
            assert len(layers) == 6 and layers[0] == "decoder.0.self_attn (1, 32, 32, 3) (1, 32, 32)"
        else:
            said += len(promised(block))
            assert out.getvalue().splitlines() == promised(block)
    assert said == 6
    # What the optimiser is not given stays, bit for bit.
    backbone, inside = names["model"].params, names["readout"].backbone
    kept = jax.tree.map(lambda leaf, held: np.array_equal(leaf, held[...]), backbone, {name: getattr(inside, name) for name in backbone})
    assert all(jax.tree.leaves(kept))
    assert np.abs(names["gradient"]).max() > 0
