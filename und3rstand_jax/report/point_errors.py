"""How far a layer's points lie from a reference: the regression part of DUSt3R's loss (Wang et al., CVPR 2024, section 3.2)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.loss import PairLoss, Target, confidence_loss
from und3rstand_jax.output import pair
from und3rstand_jax.pointmap import Pointmap
from und3rstand_jax.report.content import ViewGeometry, ViewTruth


def point_errors(views: tuple[ViewGeometry, ViewGeometry], reference: tuple[ViewTruth, ViewTruth]) -> tuple[float, float]:
    """Mean distance of each view's points to the reference's, over the pixels where the reference is known.

    Both pairs of pointmaps are first divided by their mean distance to the origin, over the known pixels of both views: the error has no
    unit, and scale does not count. A view without a known pixel has the error NaN; infinite are those of both views where a point in a
    known pixel is not finite.
    """
    known = [view.points[true.valid] for view, true in zip(views, reference, strict=True)]
    if not all(np.isfinite(points).all() for points in known):
        return np.inf, np.inf
    loss = _loss(pair(jnp.asarray(view.points)[None] for view in views), pair(map(_target, reference)))
    first, second = (
        float(error) if len(points) else np.nan for error, points in zip((loss.regression1, loss.regression2), known, strict=True)
    )
    return first, second


def _target(true: ViewTruth) -> Target:
    # Points are in view 1's frame already, so that its camera stands at the origin.
    return Target(jnp.asarray(true.points)[None], jnp.eye(4)[None], jnp.asarray(true.valid)[None])


@jax.jit
def _loss(points: tuple[Float[Array, "1 H W 3"], Float[Array, "1 H W 3"]], targets: tuple[Target, Target]) -> PairLoss:
    # The confidence has no part in the regression, which alone is read here.
    pred1, pred2 = (Pointmap(pts3d=view, conf=jnp.ones(view.shape[:-1])) for view in points)
    return confidence_loss(pred1, pred2, *targets)
