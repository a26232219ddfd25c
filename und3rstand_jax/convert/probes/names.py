"""From the names and shapes of a checkpoint's tensors to its modules, and from names to words and numbers."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from und3rstand_jax.convert.findings import Complaint

Shape = tuple[int, ...]


Token = int | str


_BATCH_NORM = {"running_mean", "running_var", "num_batches_tracked"}


# Words with a digit inside are words: the 3 of pts3d counts nothing.
_PIECE = re.compile(r"(?P<word>pts3d|dust3r|mast3r|und3rstand|[a-z]+)(?P<suffix>[0-9]*)|(?P<number>[0-9]+)")


@dataclass(frozen=True)
class Module:
    """A linear layer or a norm, as its tensors show it. `shape` is its weight's: (outputs, inputs) or (width,)."""

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

    @property
    def parts(self) -> tuple[str, ...]:
        """The path's components."""
        return tuple(self.path.split("."))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The source names of weight and, where there is one, bias."""
        return tuple(tensor_name(self.path, leaf) for leaf in (("weight", "bias") if self.has_bias else ("weight",)))


@dataclass(frozen=True)
class Parsed:
    """A checkpoint's modules, the tensors that are no module's weight or bias, and what cannot be taken."""

    modules: tuple[Module, ...]
    loose: tuple[str, ...]
    complaints: tuple[Complaint, ...]


def tensor_name(path: str, leaf: str) -> str:
    """The source name of a module's tensor; a bare module at the root has an empty path."""
    return f"{path}.{leaf}" if path else leaf


def parse_modules(tensors: Mapping[str, Shape]) -> Parsed:
    """The linear layers and norms in `tensors`, in natural order."""
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
    return Parsed(tuple(modules), tuple(loose), tuple(complaints))


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


def pieces(name: str) -> list[tuple[Token, ...]]:
    """A name's words, each with the number attached to it if any, and its free numbers: "dec_blocks2.3" is
    [("dec",), ("blocks", 2), (3,)]."""
    found: list[tuple[Token, ...]] = []
    for match in _PIECE.finditer(name.lower()):
        if match["number"]:
            found.append((int(match["number"]),))
        else:
            found.append((match["word"], int(match["suffix"])) if match["suffix"] else (match["word"],))
    return found


def tokens(name: str) -> tuple[Token, ...]:
    """A name's words and numbers in order: "dec3_ca" is ("dec", 3, "ca")."""
    return tuple(token for piece in pieces(name) for token in piece)


def token_key(token: Token) -> tuple[int, int, str]:
    """Orders numbers as numbers, before words."""
    return (0, token, "") if isinstance(token, int) else (1, 0, token)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts names with numbers as numbers, so that 10 follows 9."""
    return tuple(token_key(token) for token in tokens(name)), name


def pattern(name: str) -> str:
    """A name with its numbers left open."""
    return re.sub(r"[0-9]+", "#", name)


def name_range(names: Sequence[str]) -> str:
    """Names of one pattern as one: probes.{0…35}.net. Numbers that never change stay."""
    columns = zip(*(re.findall(r"[0-9]+", name) for name in names), strict=True)
    spans = [f"{{{min(map(int, c))}…{max(map(int, c))}}}" if len(set(c)) > 1 else c[0] for c in columns]
    filler = iter(spans)
    return re.sub(r"[0-9]+", lambda _: next(filler), names[0])


def tell(complaints: Iterable[Complaint]) -> list[str]:
    """Complaints as text; those about names that differ only in numbers are told once, with their number."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for complaint in complaints:
        alike[pattern(complaint.subject), complaint.text].append(complaint.subject)
    return [f"{subjects[0]}{_more(len(subjects) - 1)} {text}" for (_, text), subjects in alike.items()]


def _more(others: int) -> str:
    return f" (and {others} more like it)" if others else ""
