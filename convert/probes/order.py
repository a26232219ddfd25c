"""The order in which an MLP's linear layers run: by their names or, where names are silent, by their widths."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from convert.probes.names import Module, token_key, tokens

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
