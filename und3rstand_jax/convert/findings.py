"""What the recogniser is told and what it reports: explicit options, and how each fact was come by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from und3rstand_jax.model.config import Mode

How = Literal["read", "inferred", "default", "option"]


_CERTAINTY: tuple[How, ...] = ("option", "read", "inferred", "default")


@dataclass(frozen=True)
class Finding:
    """One fact about a set of probes.

    `how` is "read" where names, shapes or config state it, "inferred" where they leave one reading, "default" where
    they leave it open and the documented default was taken, "option" where the caller said it.
    """

    field: str
    value: str
    how: How
    why: str


@dataclass(frozen=True)
class ProbeOptions:
    """What the caller states explicitly; None and () mean not given.

    `probe_layers` are layer ids in the order of the checkpoint's MLPs (the order of the table).
    `mapping` is a parsed mapping file, see `und3rstand_jax.convert.probes.mapping_file`.
    """

    probe_layers: tuple[str, ...] = ()
    mapping: Mapping[str, Any] | None = None
    activation: str | None = None
    norm: str | None = None
    norm_epsilon: float | None = None
    residual: bool | None = None
    output_layout: str | None = None
    depth_mode: Mode | None = None
    conf_mode: Mode | None = None


@dataclass(frozen=True)
class Complaint:
    """What is wrong with one thing; complaints that differ only in the numbers of their subject are told once."""

    subject: str
    text: str


def least_certain(hows: "set[How]") -> How:
    """The weakest of several kinds of evidence: a fact is as certain as its least certain part."""
    return max(hows, key=_CERTAINTY.index)
