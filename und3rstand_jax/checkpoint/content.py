"""The contents of a converted checkpoint's `config.json`, as types against which it is checked when it is read.

The fields are those of the configs. A missing field is damage, unless it was added later and has a default. Unknown fields are ignored.
"""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict

from und3rstand_jax.model.output_modes import StoredMode
from und3rstand_jax.probes.config import Step


class Versioned(TypedDict):
    """The fields of every version of the file, and the list of files that version 2 adds."""

    format: str
    version: int
    files: NotRequired[object]


class Group(TypedDict):
    """The fields of `ProbeGroup`."""

    layer_ids: tuple[str, ...]
    widths: tuple[int, ...]
    steps: tuple[Step, ...]
    biases: tuple[bool, ...]
    norm_biases: tuple[bool, ...]


class Probes(TypedDict):
    """The fields of `ProbeConfig`."""

    groups: tuple[Group, ...]
    views: Literal["shared", "separate"]
    activation: str
    norm: str
    norm_epsilon: Annotated[float, Ge(0), Le(1e6)]
    residual: bool
    output_layout: str
    patch_size: int
    depth_mode: StoredMode
    conf_mode: StoredMode
    view_count: NotRequired[int]


class Layout(TypedDict):
    """How a leaf's axes correspond to a tensor's."""

    axes: list[int]
    dropped: int


class Leaf(TypedDict):
    """The tensors of the source that a leaf is made of."""

    names: list[str]
    layout: Layout
    stack: list[int]


class Licence(TypedDict):
    """The fields of `und3rstand_jax.convert.licences.Licence`."""

    id: str
    name: str | None
    link: str | None
    found: str


class Metric(TypedDict):
    """One figure for the header of a model card."""

    type: str
    name: str
    value: float


class Results(TypedDict):
    """How something was trained and how good it is, for its model card.

    `command` repeats the training, `data` is what it was trained and measured on. `head` and `rows` are the header and rows of a table
    with one row for each layer; `note` explains it.
    """

    command: str
    data: str
    steps: int
    head: list[str]
    rows: list[list[str]]
    note: str
    metrics: list[Metric]


class Provenance(TypedDict):
    """The provenance of a part. Findings and facts about training are for people to read, and are passed on unchanged."""

    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]

    source: str
    kind: str
    revision: str | None
    sha256: dict[str, str]
    licence: NotRequired[Licence | None]
    licences: NotRequired[list[Licence]]
    results: NotRequired[Results]
    config: str | None
    metadata: dict[str, str]
    leaves: dict[str, Leaf]
    unused: dict[str, str]
    second_names: dict[str, str]


class ContentOfVersion1(TypedDict):
    """The whole file, in format version 1.

    The backbone's `family` determines its other fields; without it, the backbone is a DUSt3R. See `und3rstand_jax.model.families`.
    """

    backbone: dict[str, Any] | None
    probes: Probes | None
    provenance: dict[str, Provenance]


class Content(ContentOfVersion1):
    """The whole file: its own digest, digests by part and leaf, and the paths of all files."""

    digest: Annotated[str, Len(64, 64)]
    digests: dict[str, dict[str, Annotated[str, Len(64, 64)]]]
    files: list[str]
