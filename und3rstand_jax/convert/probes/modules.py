"""The modules of a probe checkpoint, the MLPs that they make, and the layers that these read."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from und3rstand_jax.convert.findings import Complaint, Finding, How, natural_key
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.probes.config import Step

_BATCH_NORM = {"running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Module:
    """A linear layer or a norm, as its tensors show. `shape` is that of its weight: (outputs, inputs) or (width,)."""

    path: str
    shape: Shape
    has_bias: bool

    @property
    def is_linear(self) -> bool:
        """Whether the weight is a matrix; a vector is a norm's."""
        return len(self.shape) == 2

    @property
    def inputs(self) -> int:
        """Channels read."""
        return self.shape[-1]

    @property
    def outputs(self) -> int:
        """Channels written."""
        return self.shape[0]

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """The path's components."""
        return tuple(self.path.split("."))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The source names of weight and, where there is one, bias."""
        return tuple(tensor_name(self.path, leaf) for leaf in (("weight", "bias") if self.has_bias else ("weight",)))


def tensor_name(path: str, leaf: str) -> str:
    """The source name of a module's tensor; a bare module at the root has an empty path."""
    return f"{path}.{leaf}" if path else leaf


def is_below(name: str, prefix: str) -> bool:
    """Whether a tensor or module is, or lies below, the one at `prefix`."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def parse_modules(tensors: Mapping[str, Shape]) -> tuple[list[Module], list[str], list[Complaint]]:
    """The linear layers and norms in `tensors` in natural order, the tensors that are no module's weight or bias, and what is
    not supported."""
    leaves: dict[str, dict[str, Shape]] = defaultdict(dict)
    modules, loose, complaints = [], [], []
    for name, shape in tensors.items():
        path, _, leaf = name.rpartition(".")
        if "" in name.split("."):
            complaints.append(Complaint(repr(name), "has an empty component, which no PyTorch module has"))
        else:
            leaves[path][leaf] = tuple(shape)
    for path in sorted(leaves, key=natural_key):
        found = leaves[path]
        fault = _module_fault(found)
        if fault:
            complaints.append(Complaint(path or "the checkpoint's root", fault))
        elif "weight" in found:
            modules.append(Module(path, found["weight"], "bias" in found))
        loose += [tensor_name(path, leaf) for leaf in sorted(found) if leaf not in ("weight", "bias") and leaf not in _BATCH_NORM]
    return modules, loose, complaints


def _module_fault(leaves: Mapping[str, Shape]) -> str | None:
    if batch := sorted(_BATCH_NORM & set(leaves)):
        return f"is a BatchNorm (it has {', '.join(batch)}); only LayerNorm and RMSNorm are supported"
    weight, bias = leaves.get("weight"), leaves.get("bias")
    if weight is None:
        return f"has a bias {bias} but no weight; a linear layer or norm needs one" if bias is not None else None
    if len(weight) > 2:
        return f"has a weight of shape {weight}, a convolution kernel or a stack; expected a linear layer's (outputs, inputs)"
    if not weight or 0 in weight:
        return f"has a weight of shape {weight}; expected (outputs, inputs) or (width,)"
    if bias is not None and bias != weight[:1]:
        return f"has a bias of shape {bias} beside a weight of shape {weight}; expected {weight[:1]}"
    return None


@dataclass(frozen=True)
class Widths:
    """The widths an MLP may read (a layer's) and write (a patch of 3 or 4 channels)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of_backbone(cls, backbone: ModelConfig) -> "Widths":
        """The widths for probes on `backbone`."""
        pixels = backbone.patch_size**2
        return cls(tuple(dict.fromkeys(map(backbone.layer_width, backbone.layer_ids))), (4 * pixels, 3 * pixels))


def either(widths: Sequence[int]) -> str:
    """Widths as alternatives, for a message."""
    return " or ".join(map(str, widths))


@dataclass(frozen=True)
class Mlp:
    """One probe for one view, or for both.

    `linears` are in running order unless `fault` says why they do not make an MLP. `norms` are in natural order, and in running order
    once `steps` are known; `how` and `why` say how those were found.
    """

    prefix: str
    linears: tuple[Module, ...]
    norms: tuple[Module, ...] = ()
    fault: str | None = field(default=None, compare=False)
    steps: tuple[Step, ...] = ()
    how: How = "read"
    why: tuple[str, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """The input width and the output width of every linear layer."""
        return (self.linears[0].inputs, *(linear.outputs for linear in self.linears))

    @property
    def modules(self) -> tuple[Module, ...]:
        """Linear layers, then norms."""
        return self.linears + self.norms

    def relative(self, module: Module) -> tuple[str, ...]:
        """The components of a module's path below the MLP's prefix."""
        return module.parts[len(self.prefix.split(".")) if self.prefix else 0 :]

    def relative_tensors(self) -> frozenset[str]:
        """The MLP's tensor names without its prefix; a norm's are marked, because they could be a linear layer's elsewhere."""
        return frozenset(
            name[len(self.prefix) :].lstrip(".") + ("" if module.is_linear else " (norm)")
            for module in self.modules
            for name in module.tensor_names
        )


def chain_fault(linears: Sequence[Module], widths: Widths) -> str | None:
    """The reason why linear layers in this order do not make an MLP; None if they do."""

    def shown(module: Module) -> str:
        return f"{module.parts[-1] or 'the linear layer'}.weight {module.shape}"

    first, last = linears[0], linears[-1]
    if first.inputs not in widths.inputs:
        return f"reads {first.inputs} channels ({shown(first)}); expected a layer's width, {either(widths.inputs)}"
    for before, after in zip(linears, linears[1:], strict=False):
        if after.inputs != before.outputs:
            return f"does not chain: {shown(before)} is followed by {shown(after)}; expected {before.outputs} inputs"
    if last.outputs not in widths.outputs:
        return f"ends in {last.outputs} outputs ({shown(last)}); expected a patch's, {either(widths.outputs)}"
    return None


Views = tuple[Mlp, ...]
"""A layer's probe: one MLP for all views, or one for each."""


@dataclass(frozen=True)
class Reading:
    """The layers that a checkpoint's probes read: ids and probes in network order, findings about both, and what is wrong.

    With `faults`, `ids` may be empty and the probes may be in the order of their names.
    """

    ids: tuple[str, ...]
    probes: tuple[Views, ...]
    findings: tuple[Finding, ...] = ()
    faults: tuple[Complaint, ...] = ()

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        probes: Sequence[Views],
        backbone: ModelConfig,
        layer_evidence: tuple[How, str],
        view_evidence: tuple[How, str],
        faults: Sequence[Complaint] = (),
    ) -> "Reading":
        """Sorts layers into network order, and adds those whose width differs from the probe's to the faults."""
        shortened = ", ".join(ids) if len(ids) <= 3 else f"{ids[0]} … {ids[-1]} ({len(ids)})"
        most = max(map(len, probes), default=1)
        shared = "shared" if most == 1 else "separate" if most == 2 else f"separate, {most} of them"
        findings = (
            Finding("layer_ids", shortened, *layer_evidence),
            Finding("views", shared, *view_evidence),
        )
        if not ids:
            return cls((), tuple(probes), findings, tuple(faults))
        wrong = [
            Complaint(mlp.prefix, f"reads {mlp.widths[0]} channels; {layer} has {backbone.layer_width(layer)}")
            for layer, views in zip(ids, probes, strict=True)
            for mlp in views
            if not mlp.fault and mlp.widths[0] != backbone.layer_width(layer)
        ]
        rank = {layer: i for i, layer in enumerate(backbone.layer_ids)}
        order = sorted(range(len(ids)), key=lambda i: rank[ids[i]])
        return cls(tuple(ids[i] for i in order), tuple(probes[i] for i in order), findings, (*faults, *wrong))
