"""The order in which an MLP's linear layers run: by their names or, where names are silent, by their widths.

From modules to MLPs: which linear layers and norms belong together, and in which order the linear layers run.

Modules form a tree by their names. An MLP is a subtree whose linear layers chain: the first reads a layer's width, each
reads what the one before wrote, the last writes a patch. The largest such subtree is taken, because the chain ends
where the next MLP begins; where outputs are as wide as inputs, so that MLPs chain with each other, it is split at the
highest level whose branches are MLPs of one shape or are named after layers or views.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from und3rstand_jax.convert.probes.names import Module, token_key, tokens

_FIRST = {"in", "input", "inp", "first", "stem", "embed", "pre"}


_LAST = {"out", "output", "last", "final", "head", "heads", "post", "readout", "pred", "predictor", "classifier"}


@dataclass(frozen=True)
class Widths:
    """What an MLP may read (a layer's width) and write (a patch of 3 or 4 channels)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def part_rank(part: str) -> int:
    """-1 for a component named after the input, 1 for one named after the output, else 0."""
    words = set(tokens(part))
    return -1 if words & _FIRST else int(bool(words & _LAST))


def runs_before(a: Sequence[str], b: Sequence[str]) -> bool | None:
    """Whether the names say that the module at `a` runs before that at `b`; None where they do not say.

    They do when their paths part at two numbers of one list, or at a name for the input or for the output.
    """
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
    else:
        return None
    if part_rank(left) != part_rank(right):
        return part_rank(left) < part_rank(right)
    words = [[t for t in tokens(part) if isinstance(t, str)] for part in (left, right)]
    return part_key(left) < part_key(right) if words[0] == words[1] else None


def order_linears(linears: Sequence[Module], widths: Widths) -> list[Module] | None:
    """The linear layers in the order their names give or, where names are silent, their widths; None if none chains."""
    by_name = sorted(linears, key=running_key)
    if by_name and not chain_fault(by_name, widths):
        return by_name
    for start in widths.inputs:
        walk = _walk(by_name, start)
        if walk and not chain_fault(walk, widths) and not _against_names(walk):
            return walk
    return None


def _walk(linears: Sequence[Module], width: int) -> list[Module] | None:
    left, order = list(linears), []
    while left:
        fitting = [module for module in left if module.inputs == width]
        if not fitting:
            return None
        # A layer that keeps the width must run before one that leaves it.
        step = next((module for module in fitting if module.outputs == width), fitting[0])
        left.remove(step)
        order.append(step)
        width = step.outputs
    return order


def _against_names(order: Sequence[Module]) -> bool:
    return any(runs_before(b.parts, a.parts) for i, a in enumerate(order) for b in order[i + 1 :])


def unclear_order(order: Sequence[Module]) -> str | None:
    """What keeps an order that chains from being the only one, if anything."""
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            if a.shape == b.shape and runs_before(a.parts, b.parts) is None:
                return f"has linear layers {a.parts[-1]!r} and {b.parts[-1]!r} of one shape, and neither says which runs first"
    return None


def chain_fault(linears: Sequence[Module], widths: Widths) -> str | None:
    """Why linear layers in this order make no MLP, if they do not."""
    first, last = linears[0], linears[-1]
    if first.inputs not in widths.inputs:
        return f"reads {first.inputs} channels ({_shown(first)}); expected a layer's width, {either(widths.inputs)}"
    for before, after in zip(linears, linears[1:], strict=False):
        if after.inputs != before.outputs:
            return f"does not chain: {_shown(before)} is followed by {_shown(after)}; expected {before.outputs} inputs"
    if last.outputs not in widths.outputs:
        return f"ends in {last.outputs} outputs ({_shown(last)}); expected a patch's, {either(widths.outputs)}"
    return None


def _shown(module: Module) -> str:
    return f"{module.parts[-1] or 'the linear layer'}.weight {module.shape}"


def either(widths: Sequence[int]) -> str:
    """Widths as alternatives, for a message."""
    return " or ".join(map(str, widths))


@functools.lru_cache(maxsize=4096)
def part_key(part: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    """Orders the components of names as modules run: the input's, numbers as numbers, words, the output's."""
    return part_rank(part), tuple(token_key(token) for token in tokens(part))


def running_key(module: Module) -> tuple[tuple[int, tuple[tuple[int, int, str], ...]], ...]:
    """Orders modules by their names as they run."""
    return tuple(part_key(part) for part in module.parts)


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
