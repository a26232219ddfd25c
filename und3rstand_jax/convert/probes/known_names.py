"""Probes under the names that training here gives them, read directly.

    probes.{n}.mlp.{step}              all views share an MLP
    probes.{n}.view{1,2,…}.mlp.{step}  each view has its own

`n` counts the layer ids that the config lists; `step` counts the modules of a Sequential, activations included: a norm if there is one,
then linear layers with an activation between every two.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from und3rstand_jax.convert.probes.modules import Mlp, Module, Reading, Widths, chain_fault
from und3rstand_jax.convert.probes.statements import Statements
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.probes.config import Step

_MODULE = re.compile(r"(?P<prefix>probes\.(?P<number>0|[1-9]\d*)(?:\.(?P<view>view[1-9]\d{0,3}))?\.mlp)\.(?P<step>0|[1-9]\d*)")


def read_known_names(modules: Sequence[Module], widths: Widths, statements: Statements, backbone: ModelConfig) -> Reading | None:
    """The layers of probes that have exactly these names and are complete; None for anything else, which the recogniser explains."""
    listed = next(iter(statements.by_field.get("layers", ())), None)
    ids = tuple(listed.value) if listed is not None and not isinstance(listed.value, str) else ()
    matches = [_MODULE.fullmatch(module.path) for module in modules]
    if listed is None or not ids or len(set(ids)) < len(ids) or not set(ids) <= set(backbone.layer_ids):
        return None
    sequentials: dict[tuple[int, str, str], dict[int, Module]] = defaultdict(dict)
    for module, match in zip(modules, matches, strict=True):
        if match is None:
            return None
        sequentials[int(match["number"]), match["view"] or "", match["prefix"]][int(match["step"])] = module

    mlps = {(number, view): _mlp(prefix, steps, widths) for (number, view, prefix), steps in sequentials.items()}
    views = tuple(f"view{view}" for view in range(1, 1 + max(2, len(mlps) // len(ids)))) if (0, "view1") in mlps else ("",)
    probes = [tuple(mlp for view in views if (mlp := mlps.get((number, view)))) for number in range(len(ids))]
    complete = len(mlps) == len(ids) * len(views) == sum(map(len, probes))
    # A probe without a bias that its siblings have has lost it.
    alike = {(mlp.widths[0], mlp.relative_tensors()) for mlp in mlps.values() if mlp}
    if not complete or len(alike) > len({width for width, _ in alike}):
        return None
    view_evidence = (
        f"the names count {'two' if len(views) == 2 else len(views)} views" if len(views) > 1 else "the names have no second index of two"
    )
    layer_evidence = f"the config's {listed.key}, in the order of the MLPs"
    return Reading.of(ids, probes, backbone, ("read", layer_evidence), ("read", view_evidence))


def _mlp(prefix: str, modules: dict[int, Module], widths: Widths) -> Mlp | None:
    """The MLP with its modules at these indices of a Sequential: an optional norm, then every other one linear; None if it is not one."""
    norms = [modules[step] for step in sorted(modules) if not modules[step].is_linear]
    linears = [modules[step] for step in sorted(modules) if modules[step].is_linear]
    expected = [*range(len(norms)), *range(len(norms), len(norms) + 2 * len(linears), 2)]
    in_place = len(norms) <= 1 and sorted(modules) == expected and not any(modules[step].is_linear for step in range(len(norms)))
    if not in_place or not linears or chain_fault(linears, widths) or any(norm.outputs != linears[0].inputs for norm in norms):
        return None
    hidden: tuple[Step, ...] = ("linear", "activation") * (len(linears) - 1)
    steps: tuple[Step, ...] = (*(["norm"] if norms else []), *hidden, "linear")  # type: ignore[arg-type]
    why = ("gaps in the indices show the activations",) if hidden else ()
    return Mlp(prefix, tuple(linears), tuple(norms), steps=steps, why=why)
