"""What the `config.json` of a converted checkpoint holds, as types that it is checked against when it is read.

Fields are those of the configs; what is missing is damage, but for fields that came later and have a default, and what is unknown is
ignored.
"""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict

from und3rstand_jax.model.output_modes import StoredMode
from und3rstand_jax.probes.config import Step


class Versioned(TypedDict):
    """What every version of the file says, and the list that version 2 has."""

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
    """How a leaf's axes are a tensor's."""

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

    `command` trains the same, `data` is what it was trained and measured on, `rows` are a table under `head`, a row for each layer, which
    `note` explains.
    """

    command: str
    data: str
    steps: int
    head: list[str]
    rows: list[list[str]]
    note: str
    metrics: list[Metric]


class Provenance(TypedDict):
    """Of a part. Findings and facts of training are there for people to read, and go on as they are."""

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

    Of the backbone, `family` says what else it must hold, and without that it is a DUSt3R; see `und3rstand_jax.model.families`.
    """

    backbone: dict[str, Any] | None
    probes: Probes | None
    provenance: dict[str, Provenance]


class Content(ContentOfVersion1):
    """The whole file: its own digest, digests by part and leaf, and the paths of all files."""

    digest: Annotated[str, Len(64, 64)]
    digests: dict[str, dict[str, Annotated[str, Len(64, 64)]]]
    files: list[str]
