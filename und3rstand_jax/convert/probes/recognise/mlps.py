"""Finds the modules of a checkpoint that belong together in one MLP.

Modules form a tree by their names. An MLP is a subtree whose linear layers chain: the first reads a layer's width, each
reads what the one before wrote, the last writes a patch. The largest such subtree is taken, because the chain ends
where the next MLP begins. If outputs are as wide as inputs, MLPs chain with each other: the subtree is then split at
the highest level whose branches are MLPs of one shape or are named after layers or views.
"""

from collections.abc import Iterable, Sequence

from und3rstand_jax.convert.findings import tokens
from und3rstand_jax.convert.probes.modules import Module, Widths
from und3rstand_jax.convert.probes.running_order import order_linears, part_key

_SPLITTING = {"enc", "encoder", "dec", "decoder", "attn", "sa", "ca", "cross", "view", "views"}


def mlp_branches(modules: Sequence[Module], widths: Widths, depth: int = 0) -> list[list[Module]]:
    """The subtrees of `modules` that are MLPs, or look like their sibling MLPs but do not chain; `depth` counts components above."""
    if _is_mlp(modules, depth, widths):
        return [list(modules)]
    branches = _branches(modules, depth)
    below = [{module.parts[depth + 1 :] for module in branch} for branch in branches]
    siblings = [names for branch, names in zip(branches, below, strict=True) if _is_mlp(branch, depth + 1, widths)]
    found: list[list[Module]] = []
    for branch, names in zip(branches, below, strict=True):
        inside = mlp_branches(branch, widths, depth + 1)
        like_sibling = any(2 * len(names & sibling) > len(sibling) for sibling in siblings)
        # Reported whole: taken apart, the sound half of a broken MLP could pass for a shorter one.
        broken = like_sibling and sum(len(_linears(mlp)) for mlp in inside) < len(_linears(branch))
        found += [branch] if broken else inside
    return found


def _is_mlp(modules: Sequence[Module], depth: int, widths: Widths) -> bool:
    """Whether the linear layers chain, and not because several MLPs chain with each other."""
    linears = _linears(modules)
    if not order_linears(linears, widths):
        return False
    branches = _branches(linears, depth)
    while len(branches) == 1:
        depth += 1
        branches = _branches(linears, depth)
    orders = [order_linears(branch, widths) for branch in branches]
    if not branches or not all(orders):
        return True
    if all(_SPLITTING & set(tokens(branch[0].parts[depth])) for branch in branches):
        return False
    shapes = {tuple(module.shape for module in order) for order in orders if order}
    # One linear layer each, from tokens as wide as the output, could be a chain; a name of its own for each MLP says otherwise.
    named = all("mlp" in branch[0].parts[depth + 1 : -1] for branch in branches)
    return not (len(shapes) == 1 and (len(branches[0]) > 1 or named))


def _linears(modules: Iterable[Module]) -> list[Module]:
    return [module for module in modules if module.is_linear]


def _branches(modules: Iterable[Module], depth: int) -> list[list[Module]]:
    groups: dict[str, list[Module]] = {}
    for module in modules:
        if len(module.parts) > depth:
            groups.setdefault(module.parts[depth], []).append(module)
    return [groups[part] for part in sorted(groups, key=part_key)]
