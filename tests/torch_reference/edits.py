"""Interventions on the reference by PyTorch's hooks: x ← scale·x + shift at a site of the forward pass.

`tests/golden/README.md` says which sites there are, what x is at each and how an edit is written. This was made from that
statement alone; its yardstick is the cases `edit_*`. Of one view, x is

    SITE.scores    (B, H, N, M)  heads, queries, keys
    SITE.heads     (B, N, H, D)  tokens, heads, a head's channels
    SITE.update and a layer id   (B, N, C)
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tests.torch_reference.backbone import DUSt3RReference

Edit = Mapping[str, Any]
"""`site`, `view`, `scale`, `shift`, and those of `heads`, `tokens`, `queries`, `keys` and `pairs` that choose places."""
Arrays = Mapping[str, np.ndarray]
"""The shifts that edits name."""
Turns = list[tuple[int, ...]]
"""The views in what a module is given at each of its calls in a forward pass; two are stacked along the batch."""

SITE = re.compile(
    r"(?P<kind>encoder|decoder)\.(?P<block>\d+)\.(?P<step>self_attn|cross_attn|mlp)"
    r"(?:\.(?P<part>update|(?<=_attn\.)(?:scores|heads)))?"
)
OUTSIDE_BLOCKS = {"patch_embed": "patch_embed", "encoder.norm": "enc_norm", "decoder.embed": "decoder_embed", "decoder.norm": "dec_norm"}
STEPS = {"self_attn": "attn", "cross_attn": "cross_attn", "mlp": "mlp"}
VIEWS: dict[int | str, tuple[int, ...]] = {1: (1,), 2: (2,), "both": (1, 2), "all": (1, 2)}
CHOICES = {"scores": {"heads", "queries", "keys", "pairs"}, "heads": {"heads", "tokens"}}


@contextlib.contextmanager
def edited(model: DUSt3RReference, edits: Sequence[Edit], arrays: Arrays) -> Iterator[None]:
    """Every forward pass of `model` is edited until the context is left.

    Edits of one site and view act in the order given, those of an outer context before an inner one's. A pass is called with its
    views by position. With edited scores an attention is computed explicitly, whatever the model's `attention`.

    Raises:
        ValueError: there is no such site; or, once the pass comes there, it has no such places.
    """
    with contextlib.ExitStack() as installed:
        for site in dict.fromkeys(edit["site"] for edit in edits):
            here = [edit for edit in edits if edit["site"] == site]
            by_view = {view: [edit for edit in here if view in VIEWS[edit["view"]]] for view in (1, 2)}
            for module, turns in _modules(model, site):
                changes = _Changes(by_view, arrays)
                begin = functools.partial(_begin, changes, turns)
                installed.callback(model.register_forward_pre_hook(begin).remove)
                installed.callback(_install(module, site, changes))
        yield


def dense(edit: Edit, arrays: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of every element of one view's x, in its shape and type: 1 and 0 where the edit does not choose it.

    They are float32 numbers whatever the type.
    """
    scale, shift = torch.ones_like(x, dtype=torch.float32), torch.zeros_like(x, dtype=torch.float32)
    chosen, by = _chosen(edit, x), edit["shift"]
    scale[chosen] = edit["scale"]
    shift[chosen] = torch.as_tensor(arrays[by]).to(shift) if isinstance(by, str) else by
    return scale.to(x), shift.to(x)


def _chosen(edit: Edit, x: Tensor) -> tuple[Any, ...]:
    """The index of x that gives (B, heads, queries, keys), (B, heads, pairs), (B, tokens, heads, D) or (B, tokens, C)."""
    part = edit["site"].rpartition(".")[2]
    chosen_by = edit.keys() - {"site", "view", "scale", "shift"}
    if unknown := chosen_by - CHOICES.get(part, {"tokens"}):
        raise ValueError(f"{edit['site']} has no {', '.join(sorted(unknown))} to choose from")
    if "pairs" in edit and {"queries", "keys"} & chosen_by:
        raise ValueError(f"{edit['site']}: either pairs or queries and keys")

    def places(name: str, dim: int) -> Tensor:
        return torch.tensor(edit.get(name, range(x.shape[dim])), dtype=torch.long, device=x.device)

    batch = slice(None)
    if part == "heads":
        return batch, places("tokens", 1)[:, None], places("heads", 2)
    if part != "scores":
        return batch, places("tokens", 1)
    if "pairs" in edit:
        queries, keys = places("pairs", 2).unbind(-1)
        return batch, places("heads", 1)[:, None], queries, keys
    return batch, places("heads", 1)[:, None, None], places("queries", 2)[:, None], places("keys", 3)


class _Changes:
    """The edits of one module's x, view by view; called with x at each of the module's calls."""

    def __init__(self, by_view: Mapping[int, Sequence[Edit]], arrays: Arrays) -> None:
        self.by_view = by_view
        self.arrays = arrays
        self.turns: Turns = []

    def __call__(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        views = self.turns.pop(0)
        return torch.cat([self._changed(one, view) for one, view in zip(x.chunk(len(views)), views, strict=True)])

    def _changed(self, x: Float[Tensor, "B ..."], view: int) -> Float[Tensor, "B ..."]:
        for edit in self.by_view[view]:
            scale, shift = dense(edit, self.arrays, x)
            x = scale * x + shift
        return x


def _begin(changes: _Changes, turns: Callable[[Tensor, Tensor], Turns], model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """At the start of every forward pass: whose tokens the module will get, call by call."""
    changes.turns = turns(inputs[0], inputs[1])


def _encoder_turns(view1: Tensor, view2: Tensor) -> Turns:
    """One batch of both views where their sizes agree."""
    return [(1, 2)] if view1.shape == view2.shape else [(1,), (2,)]


def _parts(site: str) -> dict[str, str]:
    """What `SITE` names of a site in a block; nothing of a layer outside the blocks."""
    if site in OUTSIDE_BLOCKS:
        return {}
    if match := SITE.fullmatch(site):
        return match.groupdict()
    raise ValueError(f"no site {site!r}")


def _modules(model: DUSt3RReference, site: str) -> list[tuple[nn.Module, Callable[[Tensor, Tensor], Turns]]]:
    """The block of the site, of each view where it has its own, or the layer outside the blocks; and its turns."""
    parts = _parts(site)
    if not parts:
        in_encoder = site in ("patch_embed", "encoder.norm")
        return [(getattr(model, OUTSIDE_BLOCKS[site]), _encoder_turns if in_encoder else lambda *images: [(1,), (2,)])]
    i = int(parts["block"])
    if parts["kind"] == "encoder":
        return [(model.enc_blocks[i], _encoder_turns)]
    return [(model.dec_blocks[i], lambda *images: [(1,)]), (model.dec_blocks2[i], lambda *images: [(2,)])]


def _install(module: Any, site: str, changes: _Changes) -> Callable[[], None]:
    """Has x of `site` pass through `changes`; returns what undoes it."""
    parts = _parts(site)
    if parts and not parts["part"]:
        module = getattr(module, f"after_{parts['step']}")
    elif parts:
        module = getattr(module, STEPS[parts["step"]])
    if parts.get("part") == "scores":
        before = module.attend
        outer = before.args[0] if isinstance(before, functools.partial) else ()
        module.attend = functools.partial(_attend, (*outer, changes))
        return functools.partial(setattr, module, "attend", before)
    if parts.get("part") == "heads":
        return module.proj.register_forward_pre_hook(lambda proj, inputs: _by_heads(changes, inputs[0], module.heads)).remove
    return module.register_forward_hook(lambda layer, inputs, output: changes(output)).remove


def _attend(edits_of_scores: Sequence[_Changes], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    for changes in edits_of_scores:
        scores = changes(scores)
    return scores.softmax(-1) @ v


def _by_heads(changes: _Changes, merged: Float[Tensor, "batch N HD"], heads: int) -> Float[Tensor, "batch N HD"]:
    return changes(merged.unflatten(-1, (heads, -1))).flatten(-2)
