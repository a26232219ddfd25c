"""From modules to MLPs: which linear layers and norms belong together, and in which order the linear layers run.

Modules form a tree by their names. An MLP is a subtree whose linear layers chain: the first reads a layer's width, each
reads what the one before wrote, the last writes a patch. The largest such subtree is taken, because the chain ends
where the next MLP begins; where outputs are as wide as inputs, so that MLPs chain with each other, it is split at the
highest level whose branches are MLPs of one shape or are named after layers or views.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from convert.probes.names import Module, tokens
from convert.probes.order import Widths, chain_fault, order_linears, part_key, running_key, unclear_order

_SPLITTING = {"enc", "encoder", "dec", "decoder", "attn", "sa", "ca", "cross", "view", "views"}


@dataclass(frozen=True)
class Mlp:
    """One MLP: `linears` in running order unless `fault` says why they are not an MLP; `norms` in natural order."""

    prefix: str
    linears: tuple[Module, ...]
    norms: tuple[Module, ...] = ()
    fault: str | None = field(default=None, compare=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """The input width and what every linear layer writes."""
        return (self.linears[0].inputs, *(linear.outputs for linear in self.linears))

    @property
    def modules(self) -> tuple[Module, ...]:
        """Linear layers, then norms."""
        return self.linears + self.norms

    def relative(self, module: Module) -> tuple[str, ...]:
        """The components of a module's path below the MLP's prefix."""
        return module.parts[len(self.prefix.split(".")) if self.prefix else 0 :]

    def relative_tensors(self) -> frozenset[str]:
        """The MLP's tensor names without its prefix; a norm's say so, for it could be a linear layer elsewhere."""
        return frozenset(
            name[len(self.prefix) :].lstrip(".") + ("" if module.is_linear else " (norm)")
            for module in self.modules
            for name in module.tensor_names
        )


def find_mlps(modules: Sequence[Module], widths: Widths) -> tuple[Mlp, ...]:
    """The MLPs among `modules`; one that looks like its siblings but does not chain is there with its fault."""
    return tuple(make_mlp(branch, widths) for branch in _search(modules, 0, widths))


def make_mlp(modules: Sequence[Module], widths: Widths, prefix: str | None = None) -> Mlp:
    """The MLP that consists of `modules`, which hold at least one linear layer."""
    linears = _linears(modules)
    order = order_linears(linears, widths)
    fault = unclear_order(order) if order else chain_fault(sorted(linears, key=running_key), widths)
    norms = tuple(module for module in modules if not module.is_linear)
    where = _common_prefix(modules) if prefix is None else prefix
    return Mlp(where, tuple(order or sorted(linears, key=running_key)), norms, fault)


def _search(modules: Sequence[Module], depth: int, widths: Widths) -> list[list[Module]]:
    if _is_mlp(modules, depth, widths):
        return [list(modules)]
    branches = _branches(modules, depth)
    siblings = [_below(branch, depth) for branch in branches if _is_mlp(branch, depth + 1, widths)]
    found: list[list[Module]] = []
    for branch in branches:
        inside = _search(branch, depth + 1, widths)
        like_sibling = any(2 * len(_below(branch, depth) & sibling) > len(sibling) for sibling in siblings)
        # Told as a whole: taken apart, the sound half of a broken MLP could pass for a shorter one.
        broken = like_sibling and sum(map(len, map(_linears, inside))) < len(_linears(branch))
        found += [branch] if broken else inside
    return found


def _is_mlp(modules: Sequence[Module], depth: int, widths: Widths) -> bool:
    linears = _linears(modules)
    return bool(order_linears(linears, widths)) and not _splits(linears, depth, widths)


def _linears(modules: Iterable[Module]) -> list[Module]:
    return [module for module in modules if module.is_linear]


def _splits(linears: Sequence[Module], depth: int, widths: Widths) -> bool:
    branches = _branches(linears, depth)
    if len(branches) == 1:
        return _splits(linears, depth + 1, widths)
    orders = [order_linears(branch, widths) for branch in branches]
    if len(branches) < 2 or not all(orders):
        return False
    if all(_SPLITTING & set(tokens(branch[0].parts[depth])) for branch in branches):
        return True
    shapes = {tuple(module.shape for module in order) for order in orders if order}
    # One linear layer each, from tokens as wide as the output, could be a chain; a name of its own for each MLP says otherwise.
    named = all("mlp" in branch[0].parts[depth + 1 : -1] for branch in branches)
    return len(shapes) == 1 and (len(branches[0]) > 1 or named)


def _branches(modules: Iterable[Module], depth: int) -> list[list[Module]]:
    groups: dict[str, list[Module]] = {}
    for module in modules:
        if len(module.parts) > depth:
            groups.setdefault(module.parts[depth], []).append(module)
    return [groups[part] for part in sorted(groups, key=part_key)]


def _below(branch: Iterable[Module], depth: int) -> set[tuple[str, ...]]:
    return {module.parts[depth + 1 :] for module in branch}


def _common_prefix(modules: Sequence[Module]) -> str:
    parts = [module.parts for module in modules]
    shared = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:shared])
