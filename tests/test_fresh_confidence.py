"""Confidence begun again: 2 everywhere, and the points as before."""

import jax
import numpy as np
import pytest

from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.train.backbone_task import with_fresh_confidence

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("head", ["linear", pytest.param("dpt", marks=pytest.mark.slow)])
def test_confidence_is_2_in_every_pixel_and_the_points_are_the_same(head):
    sizes = {"enc_depth": 1, "enc_embed_dim": 32, "enc_num_heads": 2, "dec_depth": 4, "dec_embed_dim": 32, "dec_num_heads": 2}
    module = DUSt3R(BackboneConfig(img_size=(32, 32), mlp_ratio=1, head_type=head, **sizes), attention="xla")
    images = jax.random.normal(jax.random.key(0), (2, 1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(1), *images)["params"]
    # No zeros: a bias of 0 would hide one that is not replaced.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    predict = jax.jit(lambda params: module.apply({"params": params}, *images))
    before, after = predict(params), predict(with_fresh_confidence(params, module.config))
    for old, new in ((before.pred1, after.pred1), (before.pred2, after.pred2)):
        assert not np.any(old["conf"] == 2)
        assert np.all(np.asarray(new["conf"]) == 2)
        assert np.array_equal(old["pts3d"], new["pts3d"])
