"""What a probe checkpoint's config states, whatever it calls it and however deep it nests it.

What shapes cannot tell of a probe: activation, norm, epsilon, residual, layout and output modes.

An option decides; else the config, where it states the field; else what the tensors' names and shapes suggest; else a
documented default. Whichever it was is reported.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from und3rstand_jax.convert.findings import Complaint, Finding, How, ProbeOptions
from und3rstand_jax.convert.probes.mlps import Mlp
from und3rstand_jax.convert.probes.names import tokens
from und3rstand_jax.model.config import CONF_MODES, DEPTH_MODES, BackboneConfig, mode_complaints
from und3rstand_jax.probes.config import ACTIVATIONS, NORMS, OUTPUT_LAYOUTS

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


_OF_BACKBONE = {*BackboneConfig(head_type="dpt").to_hub_config(), "mlp_ratio", "mask_ratio", "norm_im2_in_dec", "two_confs", "patch_size"}


@dataclass(frozen=True)
class Statement:
    """One value of the config and the key it stands at, as in "probe.activation"."""

    key: str
    value: Any


@dataclass(frozen=True)
class Statements:
    """What the config states of each field, and the keys that say nothing understood."""

    of: Mapping[str, tuple[Statement, ...]]
    unknown: tuple[str, ...]


def read_statements(config: Mapping[str, Any] | None) -> Statements:
    """All statements of `config` about its probes; the more deeply nested come first, being the more particular."""
    of: dict[str, list[Statement]] = defaultdict(list)
    unknown = []
    for key, value in _leaves(config or {}):
        name = key.rpartition(".")[2].lower().replace("-", "_")
        field = _FIELD_OF.get(name)
        if field == "layers" and isinstance(value, int) and not isinstance(value, bool):
            field = "depth"  # "layers: 5" counts a probe's linear layers
        if field == "layers" and not (isinstance(value, str) or _strings(value)):
            field = None  # a list of numbers could be widths, blocks, or indices of a list we do not have
        if field:
            if value is not None:
                of[field].append(Statement(key, value))
        elif name not in _HARMLESS | _NOT_PROBES and not ("." not in key and name in _OF_BACKBONE):
            unknown.append(key)
    ordered = {field: tuple(sorted(found, key=lambda statement: -statement.key.count("."))) for field, found in of.items()}
    return Statements(ordered, tuple(unknown))


def _strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if str(key).lower() not in _NOT_PROBES:
                yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_ACTIVATION_NAMES = {
    "gelutanh": "gelu_tanh",
    "gelunew": "gelu_tanh",
    "gelupytorchtanh": "gelu_tanh",
    "swish": "silu",
    "leakyrelu": "leaky_relu",
    "none": "identity",
}


_NORM_NAMES = {"layernorm": "layernorm", "ln": "layernorm", "rmsnorm": "rmsnorm", "rms": "rmsnorm"}


_NO_NORM = {"none", "identity", "false"}


LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default


RMS_NORM_EPSILON = 2.0**-23  # torch.nn.RMSNorm's default, the spacing of float32 at 1


@dataclasses.dataclass(frozen=True)
class Default:
    """The value a field takes where nobody states it."""

    value: Any
    how: How
    why: str


@dataclasses.dataclass
class Settings:
    """The fields decided so far, how, and what was wrong with what was stated."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    complaints: list[Complaint] = dataclasses.field(default_factory=list)

    def decide(self, field: str, option: Any, stated: Sequence[Statement], default: Default, parse: Callable[[Any], Any]) -> None:
        """Give `field` its value; `parse` raises ValueError, which says what was expected, for one that is not supported."""
        value, how, why = default.value, default.how, default.why
        try:
            if option is not None:
                value, how, why = parse(option), "option", "stated by the caller"
            elif stated:
                value, how, why = parse(stated[0].value), "read", f"the config's {stated[0].key}"
                self._agree(field, value, stated, parse)
        except ValueError as error:
            source = field if option is not None else f"the config's {stated[0].key}"
            given = option if option is not None else stated[0].value
            self.complaints.append(Complaint(source, f"{given!r} is not supported; expected {error}"))
        self.values[field] = value
        self.findings.append(Finding(field, str(value), how, why))

    def _agree(self, field: str, value: Any, stated: Sequence[Statement], parse: Callable[[Any], Any]) -> None:
        for other in stated[1:]:
            # A value further out than the first belongs to something larger than the probes.
            if other.key.count(".") == stated[0].key.count(".") and parse(other.value) != value:
                text = f"{stated[0].value!r} and {other.key} {other.value!r} disagree; set {field} with an option"
                self.complaints.append(Complaint(f"the config's {stated[0].key}", text))


def settle(mlps: Sequence[Mlp], statements: Statements, options: ProbeOptions, backbone: BackboneConfig) -> Settings:
    """Every field of `ProbeConfig` that is not read off the shapes."""
    settings = Settings()

    def stated(field: str) -> tuple[Statement, ...]:
        return statements.of.get(field, ())

    activation = Default("gelu", "default", "no tensor shows it; DUSt3R's own MLPs use it")
    settings.decide("activation", options.activation, stated("activation"), activation, _activation)
    _settle_norm(settings, mlps, options, stated("norm"))
    epsilon, kind = (LAYER_NORM_EPSILON, "LayerNorm") if settings.values["norm"] == "layernorm" else (RMS_NORM_EPSILON, "RMSNorm")
    default = Default(epsilon, "default", f"no tensor shows it; PyTorch's default for {kind}")
    settings.decide("norm_epsilon", options.norm_epsilon, stated("norm_epsilon"), default, _epsilon)
    default = Default(False, "default", "no tensor shows it; a plain MLP has none")
    settings.decide("residual", options.residual, stated("residual"), default, _boolean)
    default = Default("channels_first", "default", "no tensor shows it; the order of DUSt3R's linear head")
    settings.decide("output_layout", options.output_layout, stated("output_layout"), default, _one_of(OUTPUT_LAYOUTS))
    for field, known in (("depth_mode", DEPTH_MODES), ("conf_mode", CONF_MODES)):
        default = Default(getattr(backbone, field), "default", "no tensor shows it; the backbone's own")
        settings.decide(field, getattr(options, field), stated(field), default, _mode(field, known))
    return settings


def _settle_norm(settings: Settings, mlps: Sequence[Mlp], options: ProbeOptions, stated: Sequence[Statement]) -> None:
    """The kind of norm; a config may also state only whether there is one, which must be so."""
    present = any(mlp.norms for mlp in mlps)
    kinds = []
    for statement in stated:
        word = _plain(statement.value)
        if (word in _NO_NORM) == present:
            found = "the tensors hold norms" if present else "the tensors hold no norm, and one without parameters is not supported"
            settings.complaints.append(Complaint(f"the config's {statement.key}", f"is {statement.value!r}, but {found}"))
        elif word not in _NO_NORM | {"true"}:
            kinds.append(statement)
    settings.decide("norm", options.norm, kinds, _norm_default(mlps), _norm)


def _norm_default(mlps: Sequence[Mlp]) -> Default:
    norms = [norm for mlp in mlps for norm in mlp.norms]
    words = {token for mlp in mlps for norm in mlp.norms for part in mlp.relative(norm) for token in tokens(part)}
    if not norms:
        return Default("layernorm", "default", "there is no norm, so it changes nothing")
    if any(norm.has_bias for norm in norms):
        return Default("layernorm", "inferred", "norms have a bias, which RMSNorm has not")
    if words & {"rms", "rmsnorm"}:
        return Default("rmsnorm", "read", "the norms' names")
    if words & {"ln", "layernorm"}:
        return Default("layernorm", "read", "the norms' names")
    return Default("rmsnorm", "default", "norms without bias are RMSNorms more often than LayerNorms without bias")


def _plain(value: Any) -> str:
    """The bare word of a name such as "nn.LayerNorm" or "<class 'torch.nn.modules.normalization.LayerNorm'>"."""
    word = str(value).strip("<>").removeprefix("class ").strip("'\"()").rpartition(".")[2]
    return word.lower().replace("_", "").replace("-", "")


def _activation(value: Any) -> str:
    word = _plain(value)
    name = _ACTIVATION_NAMES.get(word, word)
    if name not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return name


def _norm(value: Any) -> str:
    if _plain(value) not in _NORM_NAMES:
        raise ValueError(f"one of {', '.join(NORMS)}")
    return _NORM_NAMES[_plain(value)]


def _one_of(known: Sequence[str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return str(value)

    return parse


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _epsilon(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError("a number between 0 and 1")
    return float(value)


def _mode(field: str, known: tuple[str, ...]) -> Callable[[Any], Any]:
    def parse(value: Any) -> tuple[str, float, float]:
        try:
            name, low, high = value
            mode = (str(name), float(low), float(high))
        except (TypeError, ValueError):
            raise ValueError("(name, lower bound, upper bound)") from None
        if mode_complaints(field, mode, known) or any(math.isnan(bound) for bound in mode[1:]):
            raise ValueError(f"(one of {', '.join(known)}; lower bound; upper bound)")
        if field == "depth_mode" and mode[1:] != (float("-inf"), float("inf")):
            raise ValueError("(name, -inf, inf): bounds on the depth are not supported")
        return mode

    return parse
