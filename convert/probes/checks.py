"""What must hold between the parts of a probe checkpoint: siblings are alike, and the config says what shapes show."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from convert.probes.findings import Complaint
from convert.probes.mlps import Mlp
from convert.probes.names import natural_key, pattern
from convert.probes.statements import Statement, Statements
from und3rstand_jax.config import BackboneConfig


def sibling_faults(mlps: Sequence[Mlp]) -> list[Complaint]:
    """MLPs of one name pattern and input width whose tensors are not those of most of their siblings.

    A whole linear layer can be lost without breaking the chain of widths: only the siblings show it.
    """
    families: dict[tuple[str, int], list[Mlp]] = defaultdict(list)
    for mlp in mlps:
        families[pattern(mlp.prefix), mlp.widths[0]].append(mlp)
    faults = []
    for family in families.values():
        usual = Counter(mlp.relative_tensors() for mlp in family).most_common(1)[0][0]
        for mlp in family:
            own = mlp.relative_tensors()
            if own != usual:
                parts = [("lacks", usual - own), ("alone has", own - usual)]
                told = " and ".join(f"{verb} {', '.join(sorted(names, key=natural_key))}" for verb, names in parts if names)
                faults.append(Complaint(mlp.prefix, f"{told}; expected the tensors of its {len(family) - 1} siblings, or a mapping file"))
    return faults


def statement_faults(mlps: Sequence[Mlp], probes: int, statements: Statements, backbone: BackboneConfig) -> list[Complaint]:
    """Statements of the config that the shapes contradict.

    Args:
        mlps: every MLP.
        probes: the number of probed layers, which "num_layers" may also mean.
        statements: the config's.
        backbone: whose patch size the outputs were read by.
    """
    facts = [_facts(mlp, backbone.patch_size) for mlp in mlps]
    faults = []
    for field in ("hidden", "inputs", "outputs", "depth", "hidden_layers", "bias", "patch_size"):
        for statement in statements.of.get(field, ()):
            if field == "depth" and statement.key.rpartition(".")[2] in ("num_layers", "n_layers") and statement.value == probes:
                continue
            # One stated input width among several is that of some probes; every other fact is every probe's.
            holds = any if field == "inputs" else all
            if facts and not holds(_value(statement) in fact[field] for fact in facts):
                shown = " and ".join(dict.fromkeys(str(fact[field][0]) for fact in facts))
                faults.append(Complaint(f"the config's {statement.key}", f"is {statement.value!r}, but the tensors say {shown}"))
    return faults


def _facts(mlp: Mlp, patch_size: int) -> dict[str, list[Any]]:
    """For each field, the ways to state what this MLP's shapes show."""
    hidden = list(mlp.widths[1:-1])
    biases = [linear.has_bias for linear in mlp.linears]
    return {
        "hidden": [*(hidden[:1] if len(set(hidden)) == 1 else []), hidden],
        "inputs": [mlp.widths[0]],
        "outputs": [mlp.widths[-1]],
        "depth": [len(mlp.linears)],
        "hidden_layers": [len(hidden)],
        "bias": biases[:1] if len(set(biases)) == 1 else [biases],
        "patch_size": [patch_size, [patch_size, patch_size]],
    }


def _value(statement: Statement) -> Any:
    return list(statement.value) if isinstance(statement.value, tuple) else statement.value
