"""The tables of the results, in Markdown, as the command prints them and the docs show them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from und3rstand_jax.support.text import markdown_table

Entry = Mapping[str, Any]
"""A part's setting, status and, if it is done, result."""

_DONE = "done"
_CEILINGS = {"float32": "float32", "TF32": "float32, default precision (TF32 on a GPU)", "bfloat16": "bfloat16"}


def tables(document: Mapping[str, Any]) -> str:
    """All tables, with a line of explanation above each."""
    parts = document["parts"]

    def of(kind: str) -> list[Entry]:
        return [part for part in parts if part["kind"] == kind]

    (machine,) = of("machine")
    (ceilings,) = of("ceilings")
    sections = [
        _head(document, machine),
        _ceilings(ceilings),
        _golden(document, of("golden")),
        _forward(document, machine, ceilings, of("forward")),
        _step(document, of("step")),
        _vggt(of("vggt")),
        *map(_training, of("training")),
        *map(_rendering, of("rendering")),
        "Parts, and how long each took:\n\n"
        + markdown_table(("part", "status", "s"), [(part["name"], part["status"], f"{part['seconds']:.1f}") for part in parts]),
    ]
    return "\n\n".join(sections)


def _head(document: Mapping[str, Any], machine: Entry) -> str:
    facts = machine.get("result", {})
    versions = dict(facts.get("versions", {})) | facts.get("torch", {}).get("versions", {})
    rows = [
        ("device", facts.get("device", machine["status"])),
        ("GPU, memory, driver", document["driver"]),
        ("platform", facts.get("platform_version")),
        ("CPU cores", facts.get("cores")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None),
        ("command", f"`{document['command']}`"),
        ("date, commit", f"{document['date']}, {document['commit'] or 'not known'}"),
        ("seconds", f"{document['seconds']:.0f}"),
    ]
    return markdown_table(("", "value"), [(name, str(value)) for name, value in rows if value is not None])


def _ceilings(entry: Entry) -> str:
    sides = [_side(entry, name) for name in ("jax", "torch")]

    def cells(name: str, unit: float) -> list[str]:
        return [f"{side[name] / unit:.4g}" if side["status"] == _DONE else side["status"] for side in sides]

    rows = [(f"product in {label}, TFLOP/s", *cells(name, 1e12)) for name, label in _CEILINGS.items()]
    rows.append(("copy, GB/s read and written", *cells("copy", 1e9)))
    return "Ceilings:\n\n" + markdown_table(("", "JAX", "PyTorch"), rows)


def _golden(document: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """Groups of layers as rows, the dtypes as columns."""
    found = {entry["dtype"]: entry for entry in entries}
    groups = dict.fromkeys(group for entry in entries if entry["status"] == _DONE for group in entry["result"]["groups"])

    def cell(dtype: str, group: str) -> str:
        entry = found[dtype]
        if entry["status"] != _DONE:
            return entry["status"]
        worst, median = entry["result"]["groups"][group]
        return f"{worst:.2f}, {median:.2f}" if dtype == "float32" else f"{worst:.2e}, {median:.2e}"

    rows = [(group, *(cell(dtype, group) for dtype in found)) for group in groups or ["all arrays"]]
    heads = [f"{'our error over the original’s' if dtype == 'float32' else 'relative error'}, {dtype}: worst, median" for dtype in found]
    return f"Golden case {document['model']['case']}, against the original in float64:\n\n" + markdown_table(("layers", *heads), rows)


def _forward(document: Mapping[str, Any], machine: Entry, ceilings: Entry, entries: Sequence[Entry]) -> str:
    pair = machine.get("result", {}).get("flops")
    rows = []
    for entry in entries:
        ours, theirs = _side(entry, "jax"), _torch(entry, "sdpa")
        rates = [side[entry["dtype"]] for side in (_side(ceilings, "jax"), _side(ceilings, "torch")) if side["status"] == _DONE]
        share = "–"
        if pair and rates and ours["status"] == _DONE:
            share = f"{entry['batch'] * pair / statistics.median(ours['seconds']) / max(rates):.0%}"
        rows.append(
            (
                *(str(entry["batch"]), entry["dtype"], entry["attention"]),
                *(_milliseconds(ours), _milliseconds(theirs), _faster(ours, theirs)),
                *(_rate(ours, entry["batch"]), share, _compilation(ours), _gb(ours, "gb"), _gb(theirs, "gb")),
            )
        )
    head = (
        *("batch", "dtype", "attention", "JAX, ms", "PyTorch sdpa, ms", "JAX over PyTorch", "JAX, pairs/s", "of the ceiling"),
        *("compile s", "JAX GB", "PyTorch GB"),
    )
    height, width = document["model"]["forward"]
    return f"Forward pass with heads and all decoder layers, {width}×{height}, in turn; median [min, max]:\n\n" + markdown_table(head, rows)


def _step(document: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    orders = ("all outputs first", "probe by probe")
    rows = []
    for entry in entries:
        ours, theirs = _side(entry, "jax"), [_torch(entry, order) for order in orders]
        rows.append(
            (
                *(str(entry["batch"]), entry["precision"], _milliseconds(ours)),
                *(cell for side in theirs for cell in (_milliseconds(side), _faster(ours, side))),
                *(_rate(ours, entry["batch"]), _compilation(ours), *(_gb(side, "beyond_gb") for side in (ours, *theirs))),
                f"{ours['first_loss']:.6f}" if ours["status"] == _DONE else "–",
            )
        )
    head = (
        *("batch", "precision of the probes", "JAX, ms", *(name for order in orders for name in (f"PyTorch, {order}, ms", "JAX over it"))),
        *("JAX, pairs/s", "compile s", "JAX, beyond the backbone, GB", *(f"{order}, GB" for order in orders), "first loss"),
    )
    height, width = document["model"]["step"]
    return f"Training step of all probes, backbone in float32, {width}×{height}, in turn; median [min, max]:\n\n" + markdown_table(
        head, rows
    )


def _vggt(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in entries:
        ours, theirs = _side(entry, "jax"), _torch(entry, "sdpa")
        timed = (_milliseconds(ours), _milliseconds(theirs), _faster(ours, theirs))
        rows.append((str(entry["views"]), entry["dtype"], *timed, _compilation(ours), _gb(ours, "gb"), _gb(theirs, "gb")))
    head = ("views", "dtype", "JAX, ms", "PyTorch sdpa, ms", "JAX over PyTorch", "compile s", "JAX GB", "PyTorch GB")
    return "VGGT, forward pass with heads, JAX with all layers, random weights, in turn; median [min, max]:\n\n" + markdown_table(
        head, rows
    )


def _training(entry: Entry) -> str:
    title = "Probes of the pocket model trained at each precision, from the same seeds; errors on held-out scenes:\n\n"
    head = ("precision", "error, m", "spread over seeds", "difference from highest", "by layer: spread", "difference", "within the spread")
    if entry["status"] != _DONE:
        return title + markdown_table(head, [(entry["status"], *["–"] * (len(head) - 1))])
    rows = []
    for precision, found in entry["result"]["summary"].items():
        shares = [found[name] for name in ("spread", "difference", "layer_spread", "layer_difference")]
        within = "yes" if abs(found["difference"]) <= entry["result"]["summary"]["highest"]["spread"] else "no"
        rows.append((precision, f"{found['error']:.4f}", *(f"{share:.3%}" for share in shares), within))
    untrained = statistics.fmean(entry["result"]["untrained"])
    return f"{title}{markdown_table(head, rows)}\n\nBefore training: {untrained:.4f} m."


def _rendering(entry: Entry) -> str:
    head = ("size", "pairs per round", "pairs/s, median [min, max]", "compile s")
    if entry["status"] != _DONE:
        rows: Iterable[Sequence[str]] = [(entry["status"], "–", "–", "–")]
    else:
        rows = [
            (f"{size['side']}×{size['side']}", str(size["batch"]), _spread(size["rates"]), f"{size['compile_s']:.1f}")
            for size in entry["result"]["sizes"]
        ]
    return "Renderer:\n\n" + markdown_table(head, rows)


def _side(entry: Entry, name: str) -> Entry:
    """A side of a part; if the part is not done, nothing but its status."""
    return entry["result"][name] if entry["status"] == _DONE else entry


def _torch(entry: Entry, name: str) -> Entry:
    return entry["result"]["torch"][name] if entry["status"] == _DONE else {"status": "–"}


def _milliseconds(side: Entry) -> str:
    return _spread([1000 * seconds for seconds in side["seconds"]]) if side["status"] == _DONE else side["status"]


def _faster(ours: Entry, theirs: Entry) -> str:
    """How many times as fast ours is: the median of the ratios round by round."""
    if not ours["status"] == theirs["status"] == _DONE:
        return "–"
    return f"{statistics.median(b / a for a, b in zip(ours['seconds'], theirs['seconds'], strict=True)):.2f}×"


def _rate(side: Entry, batch: int) -> str:
    return f"{batch / statistics.median(side['seconds']):.3g}" if side["status"] == _DONE else "–"


def _compilation(side: Entry) -> str:
    if side["status"] != _DONE:
        return "–"
    return f"{side['compile_s']:.1f}{' (read)' if side['from_cache'] else ''}"


def _gb(side: Entry, name: str) -> str:
    return "–" if side["status"] != _DONE or side[name] is None else f"{side[name]:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"
