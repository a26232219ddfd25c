"""What happens at the sites of one block while it runs: where it begins and ends, what is edited, what is kept."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

from jaxtyping import Array, Float

from und3rstand_jax.model.affine import Affine, apply_affine
from und3rstand_jax.model.sites import Site, captured_at


@dataclasses.dataclass
class BlockSites:
    """One run of one block; sites are named within the block (`cross_attn`, `cross_attn.heads`).

    Attributes:
        captured: the sites to keep, with the heads to keep of each.
        edits: site without heads -> its edit.
        since: the step after which the block begins, None to begin with its first.
        until: the site at which it ends, so that unused values are not traced.
        kept: the captured sites and `until`, as far as the block has run. Edited values are kept as edited.
    """

    captured: Collection[str] = ()
    edits: Mapping[str, Affine] = dataclasses.field(default_factory=dict)
    since: str | None = None
    until: str = "mlp"
    kept: dict[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether the block has reached its end."""
        return self.until in self.kept

    def step(self, name: str, x: Float[Array, "B *N C"], update: Callable[[], Float[Array, "B *N C"] | None]) -> Float[Array, "B *N C"]:
        """The residual stream after a step that adds `update()`; unchanged if the step is not run, or not to its end."""
        if self.since is not None:
            if name == self.since:
                self.since = None
            return x
        added = None if self.is_done else update()
        if added is None:
            return x
        added = self.at(f"{name}.update", added)
        return x if self.is_done else self.at(name, x + added)

    def at(self, site: str, x: Float[Array, "..."], heads_axis: int = 2) -> Float[Array, "..."]:
        """The values at a site after their edit; those that are captured are kept."""
        if site in self.edits:
            x = apply_affine(self.edits[site], x)
        for of in self.captured_at(site):
            kept = x if of.heads is None else x[(slice(None),) * heads_axis + (of.head_slice,)]
            # The axis of queries, if there is one, follows that of heads.
            self.kept[str(of)] = kept if of.queries is None else kept[(slice(None),) * (heads_axis + 1) + (of.query_slice,)]
        return x

    def captured_at(self, site: str) -> list[Site]:
        """What is captured at a site, including the block's end."""
        return captured_at(site, {*self.captured, self.until})
