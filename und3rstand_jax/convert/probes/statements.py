"""What a probe checkpoint's config states, under whatever key and at whatever depth, and where the tensors contradict it."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from und3rstand_jax.convert.findings import Complaint
from und3rstand_jax.convert.probes.modules import Mlp

_SPELLINGS = {
    "activation": "activation act act_fn act_layer activation_fn activation_function nonlinearity hidden_act",
    "norm": "norm norm_layer norm_type normalization use_norm layer_norm layernorm use_layer_norm use_layernorm",
    "norm_epsilon": "norm_epsilon norm_eps eps epsilon layer_norm_eps layer_norm_epsilon layernorm_eps ln_eps",
    "residual": "residual residuals use_residual skip skip_connection skip_connections use_skip",
    "output_layout": "output_layout",
    "patch_size": "patch_size",
    "depth_mode": "depth_mode",
    "conf_mode": "conf_mode",
    "layers": "layer_ids layer_names probed_layers probe_layers probed_layer_ids layers hooks hook_names feature_layers",
    "hidden": "hidden_dim hidden_dims hidden_size hidden_sizes hidden_width hidden_features hidden_channels dim_hidden mlp_dim mlp_width",
    "inputs": "in_dim input_dim in_features dim_in",
    "outputs": "out_dim output_dim out_features dim_out",
    "depth": "depth mlp_depth probe_depth num_layers n_layers mlp_layers n_linear num_linear",
    "hidden_layers": "num_hidden_layers n_hidden_layers n_hidden num_hidden",
    "bias": "bias use_bias",
}
_FIELD_OF = {spelling: field for field, spellings in _SPELLINGS.items() for spelling in spellings.split()}

# A whole backbone below one key; the checkpoint's own training and packaging: none of it is about the probes.
_NOT_PROBES = {"backbone", "base_model", "base", "dust3r", "croco", "model_type", "architectures", "torch_dtype", "dtype"}
_HARMLESS = {
    *("dropout", "drop", "drop_rate", "p_drop"),  # off outside training
    *("library_name", "license", "tags", "repo_url", "paper_url", "docs_url", "transformers_version"),
}


@dataclass(frozen=True)
class Statement:
    """One value in the config and its key, such as "probe.activation"."""

    key: str
    value: Any


@dataclass(frozen=True)
class Statements:
    """What the config states about each field, and the keys that are not understood."""

    by_field: Mapping[str, tuple[Statement, ...]]
    unknown: tuple[str, ...]


def read_statements(config: Mapping[str, Any] | None, of_backbone: Collection[str]) -> Statements:
    """All statements of `config` about its probes; more deeply nested ones come first, because they are more specific.

    `of_backbone` are the backbone's options, which may appear beside them.
    """
    of: dict[str, list[Statement]] = defaultdict(list)
    unknown = []
    for key, value in _leaves(config or {}):
        name = key.rpartition(".")[2].lower().replace("-", "_")
        field = _FIELD_OF.get(name)
        if field == "layers" and isinstance(value, int) and not isinstance(value, bool):
            field = "depth"  # "layers: 5" counts a probe's linear layers
        strings = isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
        if field == "layers" and not (isinstance(value, str) or strings):
            field = None  # a list of numbers could be widths, blocks, or indices of a list we do not have
        if field:
            if value is not None:
                of[field].append(Statement(key, value))
        elif name not in _HARMLESS | _NOT_PROBES and not ("." not in key and name in of_backbone):
            unknown.append(key)
    ordered = {field: tuple(sorted(found, key=lambda statement: -statement.key.count("."))) for field, found in of.items()}
    return Statements(ordered, tuple(unknown))


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if str(key).lower() not in _NOT_PROBES:
                yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def statement_faults(mlps: Sequence[Mlp], probes: int, statements: Statements, patch_size: int) -> list[Complaint]:
    """Statements of the config that the shapes contradict.

    Args:
        mlps: every MLP.
        probes: the number of probed layers, which "num_layers" may also mean.
        statements: the config's statements.
        patch_size: the backbone's patch size, by which the outputs were interpreted.
    """
    shown = [_shown(mlp, patch_size) for mlp in mlps]
    faults = []
    for field in ("hidden", "inputs", "outputs", "depth", "hidden_layers", "bias", "patch_size"):
        for statement in statements.by_field.get(field, ()):
            if field == "depth" and statement.key.rpartition(".")[2] in ("num_layers", "n_layers") and statement.value == probes:
                continue
            value = list(statement.value) if isinstance(statement.value, tuple) else statement.value
            # One stated input width among several is that of some probes; everything else applies to every probe.
            holds = any if field == "inputs" else all
            if shown and not holds(value in forms[field] for forms in shown):
                found = " and ".join(dict.fromkeys(str(forms[field][0]) for forms in shown))
                faults.append(Complaint(f"the config's {statement.key}", f"is {statement.value!r}, but the tensors say {found}"))
    return faults


def _shown(mlp: Mlp, patch_size: int) -> dict[str, list[object]]:
    """For each field, the ways to state what this MLP's shapes show."""
    hidden = list(mlp.widths[1:-1])
    biases = [linear.has_bias for linear in mlp.linears]
    return {
        "hidden": [*(hidden[:1] if len(set(hidden)) == 1 else []), hidden],
        "inputs": [mlp.widths[0]],
        "outputs": [mlp.widths[-1]],
        "depth": [len(mlp.linears)],
        "hidden_layers": [len(hidden)],
        "bias": [*biases[:1]] if len(set(biases)) == 1 else [biases],
        "patch_size": [patch_size, [patch_size, patch_size]],
    }
