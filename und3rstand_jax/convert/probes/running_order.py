"""The order in which the modules of one MLP run, by their names and widths."""

import functools
from collections.abc import Sequence

from und3rstand_jax.convert.findings import token_key, tokens
from und3rstand_jax.convert.probes.modules import Mlp, Module, Widths, chain_fault

_FIRST = {"in", "input", "inp", "first", "stem", "embed", "pre"}
_LAST = {"out", "output", "last", "final", "head", "heads", "post", "readout", "pred", "predictor", "classifier"}

PartKey = tuple[int, tuple[tuple[int, int, str], ...]]
"""Sort key of a component of a name: the input's first, the output's last, others in between as words and numbers."""


def make_mlp(modules: Sequence[Module], widths: Widths, prefix: str | None = None) -> Mlp:
    """The MLP that consists of `modules`, at least one of them linear; the default prefix is what their names have in common."""
    linears = [module for module in modules if module.is_linear]
    by_name = sorted(linears, key=running_key)
    order = order_linears(linears, widths)
    if order is None:
        fault = chain_fault(by_name, widths)
    else:  # an order that chains must be the only one
        pairs = ((a, b) for i, a in enumerate(order) for b in order[i + 1 :])
        unclear = next(
            (pair for pair in pairs if pair[0].shape == pair[1].shape and runs_before(pair[0].parts, pair[1].parts) is None), None
        )
        names = [module.parts[-1] for module in unclear or ()]
        fault = f"has linear layers {names[0]!r} and {names[1]!r} of one shape, and neither name says which runs first" if unclear else None
    if prefix is None:
        parts = [module.parts for module in modules]
        shared = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), min(map(len, parts)))
        prefix = ".".join(parts[0][:shared])
    return Mlp(prefix, tuple(order or by_name), tuple(module for module in modules if not module.is_linear), fault)


def order_linears(linears: Sequence[Module], widths: Widths) -> list[Module] | None:
    """The linear layers in the order given by their names or, if these do not tell, by their widths; None if no order chains."""
    by_name = sorted(linears, key=running_key)
    if by_name and not chain_fault(by_name, widths):
        return by_name
    for width in widths.inputs:
        left, order = list(by_name), list[Module]()
        while fitting := [module for module in left if module.inputs == width]:
            # A layer that keeps the width must run before one that leaves it.
            step = next((module for module in fitting if module.outputs == width), fitting[0])
            left.remove(step)
            order.append(step)
            width = step.outputs
        against_names = any(runs_before(b.parts, a.parts) for i, a in enumerate(order) for b in order[i + 1 :])
        if order and not left and not chain_fault(order, widths) and not against_names:
            return order
    return None


def runs_before(a: Sequence[str], b: Sequence[str]) -> bool | None:
    """Whether the names say that the module at `a` runs before the one at `b`; None if they do not tell.

    They tell if the paths first differ in two numbers of one list, or in a name for the input or for the output.
    """
    left, right = next(((left, right) for left, right in zip(a, b, strict=False) if left != right), ("", ""))
    if left == right:
        return None
    left_key, right_key = part_key(left), part_key(right)
    if left_key[0] != right_key[0]:
        return left_key[0] < right_key[0]
    words = [[token for token in tokens(part) if isinstance(token, str)] for part in (left, right)]
    return left_key < right_key if words[0] == words[1] else None


def running_key(module: Module) -> tuple[PartKey, ...]:
    """Sort key that orders modules by their names, as they run."""
    return tuple(map(part_key, module.parts))


@functools.lru_cache(maxsize=4096)
def part_key(part: str) -> PartKey:
    """Sort key that orders name components as modules run: those named after the input (rank -1), others (0) with numbers as numbers,
    those named after the output (1)."""
    words = tokens(part)
    rank = -1 if _FIRST & set(words) else int(bool(_LAST & set(words)))
    return rank, tuple(map(token_key, words))
