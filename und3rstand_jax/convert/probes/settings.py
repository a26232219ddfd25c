"""What shapes cannot show about probes: activation, norm, epsilon, residual, layout and output modes.

An option or the mapping file decides; else the config, if it states the field; else what the tensors' names and shapes suggest;
else a documented default. The source of each value is reported.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from und3rstand_jax.convert.findings import Complaint, Finding, How, tokens
from und3rstand_jax.convert.probes.modules import Mlp
from und3rstand_jax.convert.probes.statements import Statement, Statements
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.output_modes import OUTPUT_MODES, parse_mode
from und3rstand_jax.probes.config import ACTIVATIONS, NORMS, OUTPUT_LAYOUTS

LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default
RMS_NORM_EPSILON = 2.0**-23  # torch.nn.RMSNorm's default, the spacing of float32 at 1

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

Parse = Callable[[Any], object]
"""Turns a stated value into a field's; raises ValueError, which says what was expected, for one that is not supported."""


@dataclasses.dataclass(frozen=True)
class Default:
    """The value that a field takes if nobody states it."""

    value: object
    how: How
    why: str


@dataclasses.dataclass
class Settings:
    """The fields decided so far, how they were decided, and what was wrong with stated values."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    complaints: list[Complaint] = dataclasses.field(default_factory=list)

    def decide(self, field: str, option: object, stated: Sequence[Statement], default: Default, parse: Parse) -> None:
        """Gives `field` the caller's value, else the config's, else the default."""
        value, how, why = default.value, default.how, default.why
        try:
            if option is not None:
                value, how, why = parse(option), "option", "stated by the caller"
            elif stated:
                value, how, why = parse(stated[0].value), "read", f"the config's {stated[0].key}"
                for other in stated[1:]:
                    # A value further out than the first belongs to something larger than the probes.
                    if other.key.count(".") == stated[0].key.count(".") and parse(other.value) != value:
                        text = f"{stated[0].value!r} and {other.key} {other.value!r} disagree; set {field} with an option"
                        self.complaints.append(Complaint(f"the config's {stated[0].key}", text))
        except ValueError as error:
            source = field if option is not None else f"the config's {stated[0].key}"
            given = option if option is not None else stated[0].value
            self.complaints.append(Complaint(source, f"{given!r} is not supported; expected {error}"))
        self.values[field] = value
        self.findings.append(Finding(field, str(value), how, why))


def settle(mlps: Sequence[Mlp], statements: Statements, options: Mapping[str, object], backbone: ModelConfig) -> Settings:
    """Every field of `ProbeConfig` that is not read from the shapes; `options` are the fields that the caller states."""
    settings = Settings()

    def decide(field: str, default: Default, parse: Parse) -> None:
        settings.decide(field, options.get(field), statements.by_field.get(field, ()), default, parse)

    decide("activation", Default("gelu", "default", "no tensor shows it; DUSt3R's own MLPs use it"), _activation)
    _settle_norm(settings, mlps, options.get("norm"), statements.by_field.get("norm", ()))
    epsilon, kind = (LAYER_NORM_EPSILON, "LayerNorm") if settings.values["norm"] == "layernorm" else (RMS_NORM_EPSILON, "RMSNorm")
    decide("norm_epsilon", Default(epsilon, "default", f"no tensor shows it; PyTorch's default for {kind}"), _epsilon)
    decide("residual", Default(False, "default", "no tensor shows it; a plain MLP has none"), _boolean)
    default = Default("channels_first", "default", "no tensor shows it; the order of DUSt3R's linear head")
    decide("output_layout", default, _output_layout)
    for field in OUTPUT_MODES:
        default = Default(getattr(backbone, field), "default", "no tensor shows it; the backbone's own")
        decide(field, default, functools.partial(parse_mode, field))
    return settings


def _settle_norm(settings: Settings, mlps: Sequence[Mlp], option: object, stated: Sequence[Statement]) -> None:
    """The kind of norm; a config may also state only whether there is one, which must agree with the tensors."""
    norms = [norm for mlp in mlps for norm in mlp.norms]
    kinds = []
    for statement in stated:
        word = _plain(statement.value)
        if (word in _NO_NORM) == bool(norms):
            found = "the tensors hold norms" if norms else "the tensors hold no norm, and one without parameters is not supported"
            settings.complaints.append(Complaint(f"the config's {statement.key}", f"is {statement.value!r}, but {found}"))
        elif word not in _NO_NORM | {"true"}:
            kinds.append(statement)
    words = {token for mlp in mlps for norm in mlp.norms for part in mlp.relative(norm) for token in tokens(part)}
    if not norms:
        default = Default("layernorm", "default", "there is no norm, so it changes nothing")
    elif any(norm.has_bias for norm in norms):
        default = Default("layernorm", "inferred", "norms have a bias, and RMSNorm has none")
    elif words & {"rms", "rmsnorm"}:
        default = Default("rmsnorm", "read", "the norms' names")
    elif words & {"ln", "layernorm"}:
        default = Default("layernorm", "read", "the norms' names")
    else:
        default = Default("rmsnorm", "default", "norms without bias are RMSNorms more often than LayerNorms without bias")
    settings.decide("norm", option, kinds, default, _norm)


def _plain(value: object) -> str:
    """The bare word of a name such as "nn.LayerNorm" or "<class 'torch.nn.modules.normalization.LayerNorm'>"."""
    word = str(value).strip("<>").removeprefix("class ").strip("'\"()").rpartition(".")[2]
    return word.lower().replace("_", "").replace("-", "")


def _activation(value: object) -> str:
    word = _plain(value)
    name = _ACTIVATION_NAMES.get(word, word)
    if name not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return name


def _norm(value: object) -> str:
    if _plain(value) not in _NORM_NAMES:
        raise ValueError(f"one of {', '.join(NORMS)}")
    return _NORM_NAMES[_plain(value)]


def _output_layout(value: object) -> str:
    if value not in OUTPUT_LAYOUTS:
        raise ValueError(f"one of {', '.join(OUTPUT_LAYOUTS)}")
    return str(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _epsilon(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError("a number between 0 and 1")
    return float(value)
