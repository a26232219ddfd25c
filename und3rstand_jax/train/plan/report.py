"""A plan as text."""

from collections.abc import Sequence

from und3rstand_jax.train.plan.planning import MOST_COMPILATIONS, Plan
from und3rstand_jax.train.plan.topology import Chip
from und3rstand_jax.train.plan.work import seconds

_KINDS = {
    "backbone": "backbone, without heads",
    "probes": "probes",
    "last_good": "probes, the copy of the last good ones",
    "optimizer": "optimiser",
    "batch": "batch",
    "padding": "padding of all these",
    "tokens": "activations: captured tokens",
    "temporaries": "other activations, temporaries",
    "results": "losses",
    "program": "program",
}


def report(plan: Plan) -> str:
    """All of it."""
    return "\n".join([*_subject(plan), "", *_memory(plan), *_largest(plan), "", *_work(plan), "", *_time(plan)])


def _subject(plan: Plan) -> list[str]:
    task, options = plan.task, plan.setup.options
    height, width = task.shape
    several = f", the largest of {len(plan.setup.feed.shapes)} resolutions" if len(plan.setup.feed.shapes) > 1 else ""
    parts = f", in {task.accumulate} parts" if task.accumulate > 1 else ""
    return [
        f"{plan.topology.name}: {_several(plan.devices, 'device')} ({plan.device_kind}), {_several(plan.hosts, 'host')}",
        f"{_several(len(task.probes.layer_ids), 'probe')} on {options.backbone} in {options.dtype}, {width}×{height} pixels{several}",
        f"{_several(plan.pairs * plan.devices, 'pair')} a step, {plan.pairs} on each device{parts}",
    ]


def _memory(plan: Plan) -> list[str]:
    title = f"Memory of each device at {plan.pairs} pairs, by XLA's analysis of the compiled step"
    memory = plan.tried[plan.pairs]
    if isinstance(memory, str):
        return [title, f"  does not compile for {_bytes(plan.limit)}: {memory}"]
    total, margin = memory.total, plan.limit - memory.total
    prefix = _prefix([total])
    rows = [[label, _figure(getattr(memory, kind), prefix)] for kind, label in _KINDS.items()]
    verdict = f"fits, {_bytes(margin)} to spare" if margin >= 0 else f"does not fit, {_bytes(-margin)} too much"
    return [title, *_table([["", f"{prefix[0]}B"], *rows, ["total", _figure(total, prefix)]]), f"  of {_bytes(plan.limit)}: {verdict}"]


def _largest(plan: Plan) -> list[str]:
    found = plan.largest
    if found is None:
        return []
    if not found.pairs:
        return [f"Largest batch that fits: none was found, down to {_several(found.too_many or 1, 'pair')} on each device"]
    lines = [f"Largest batch that fits: {_several(found.pairs, 'pair')} on each device, --batch-size {found.pairs * plan.devices}"]
    lines.append(f"  verified by compiling it: {_bytes(found.total)} of {_bytes(plan.limit)}")
    if found.too_many is None:
        return [*lines, f"  more may fit: the search ends after {MOST_COMPILATIONS} compilations"]
    tried = plan.tried.get(found.too_many)
    if tried is None:
        return [*lines, f"  {found.too_many} do not, by what the last pairs took"]
    return [*lines, f"  {found.too_many} do not: {tried if isinstance(tried, str) else _bytes(tried.total)}"]


def _work(plan: Plan) -> list[str]:
    """Columns of what each part does."""
    counts = [part.count for part in plan.parts]
    flop, other = _prefix([count.flops for count in counts]), _prefix([count.elementwise for count in counts])
    moved = _prefix([count.traffic for count in counts])
    header = ["", f"products {flop[0]}FLOP", "as", f"moved {moved[0]}B", f"sent {moved[0]}B", f"other {other[0]}FLOP"]
    rows = [
        [
            part.name,
            _figure(part.count.flops, flop),
            _kinds(part.count.products),
            _figure(part.count.traffic, moved),
            _figure(part.exchanged, moved),
            _figure(part.count.elementwise, other),
        ]
        for part in plan.parts
    ]
    sums = [
        "a step",
        _figure(sum(count.flops for count in counts), flop),
        "",
        _figure(sum(count.traffic for count in counts), moved),
        _figure(sum(part.exchanged for part in plan.parts), moved),
        _figure(sum(count.elementwise for count in counts), other),
    ]
    if plan.chip is not None:
        times = [seconds(part, plan.chip) for part in plan.parts]
        for row, cell in zip([header, *rows, sums], ["least ms", *(f"{1e3 * t:.1f}" for t in [*times, sum(times)])], strict=True):
            row.append(cell)
    return [
        "Work of each device, counted in the step's own program with every round of its loops. Moved: operands and results of",
        "matrix products, as if each read and wrote memory, and the state. Other: elementwise arithmetic, which has no share in the times.",
        *_table([header, *rows, sums]),
    ]


def _time(plan: Plan) -> list[str]:
    if plan.topology.platform == "cpu":
        return ["No estimate of the time: nobody publishes peaks of this CPU. A few steps (--steps 5) will tell."]
    if plan.chip is None:
        return [f"No estimate of the time: the peaks of {plan.device_kind} are not listed in und3rstand_jax/train/plan/topology.py."]
    step = sum(seconds(part, plan.chip) for part in plan.parts)
    rate, steps = plan.pairs * plan.devices / step, plan.setup.options.steps
    return [
        f"Estimate: {step:.3g} s a step, {rate:.3g} pairs/s, {_duration(step * steps)} for {steps} steps",
        f"  from published peaks: {_peaks(plan.chip, plan.task.precision.name.lower())};",
        "  each part at its fastest, one after the other: real steps take longer",
    ]


def _peaks(chip: Chip, precision: str) -> str:
    rates = (
        f"{chip.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, {chip.rate('float32', precision) / 1e12:.0f} in float32 at precision {precision}"
    )
    return f"{chip.name}, {rates}, {_bytes(chip.bandwidth)}/s of memory, {_bytes(chip.interconnect)}/s to other chips"


def _kinds(products: dict[tuple[str, str], int]) -> str:
    """What nearly all products are: a hundredth of them is not worth a word."""
    told = [
        dtype if dtype != "float32" else f"{dtype} {precision}"
        for (dtype, precision), flops in products.items()
        if flops * 100 > sum(products.values())
    ]
    return ", ".join(told)


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


Prefix = tuple[str, float]


def _prefix(values: Sequence[float]) -> Prefix:
    """The prefix in which the largest value has one to three digits before the point."""
    largest = max(values)
    return next(((name, unit) for name, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if largest >= unit), ("k", 1e3))


def _figure(value: float, prefix: Prefix) -> str:
    return f"{value / prefix[1]:.2f}"


def _bytes(value: float) -> str:
    prefix = _prefix([value])
    return f"{value / prefix[1]:.4g} {prefix[0]}B"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns, the first of them to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
