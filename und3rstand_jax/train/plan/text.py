"""A plan as text, and as JSON."""

import dataclasses
from collections.abc import Sequence

from und3rstand_jax.support.text import JsonObject, printable, text_table
from und3rstand_jax.train.plan.planning import MOST_COMPILATIONS, Largest, Plan
from und3rstand_jax.train.plan.shapes import planned_shape
from und3rstand_jax.train.plan.work import Part, seconds

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


def plan_text(plan: Plan) -> str:
    """The plan in four sections: what is planned, memory, work, time."""
    return "\n".join([*_subject(plan), "", *_memory(plan), *_largest(plan), "", *_work(plan), "", *_time(plan)])


def plan_json(plan: Plan) -> JsonObject:
    """The plan's numbers, unrounded; docs/command_output.md explains the keys. Without a chip's peaks there are no times."""
    height, width = planned_shape(plan.task)
    options, memory = plan.task.options, plan.tried[plan.pairs]
    parts = [
        {
            "name": part.name,
            "product_flops": [
                {"dtype": dtype, "precision": precision, "flops": flops} for (dtype, precision), flops in part.count.products.items()
            ],
            "traffic_bytes": part.count.traffic,
            "exchanged_bytes": part.exchanged,
            "elementwise_flops": part.count.elementwise,
            "least_seconds": None if plan.chip is None else seconds(part, plan.chip),
        }
        for part in plan.parts
    ]
    step = None if plan.chip is None else sum(seconds(part, plan.chip) for part in plan.parts)
    return {
        "topology": plan.topology.name,
        "device_kind": plan.device_kind,
        "devices": plan.devices,
        "hosts": plan.hosts,
        "backbone": options.backbone,
        "layers": plan.task.probes.layer_ids,
        "resolution": f"{width}x{height}",
        "pairs_per_device": plan.pairs,
        "memory_limit_bytes": plan.limit,
        "memory_bytes": None if isinstance(memory, str) else {**dataclasses.asdict(memory), "total": memory.total},
        "tried": [
            {"pairs_per_device": pairs, "total_bytes": None, "does_not_compile": found}
            if isinstance(found, str)
            else {"pairs_per_device": pairs, "total_bytes": found.total, "does_not_compile": None}
            for pairs, found in plan.tried.items()
        ],
        "largest": None if plan.largest is None else _largest_json(plan.largest),
        "parts": parts,
        "estimate": None if step is None else {"seconds_per_step": step, "seconds": step * options.steps, "steps": options.steps},
    }


def _largest_json(found: Largest) -> JsonObject:
    return {"pairs_per_device": found.pairs, "total_bytes": found.total, "too_many": found.too_many}


def _subject(plan: Plan) -> list[str]:
    task, options = plan.task, plan.task.options
    height, width = planned_shape(task)
    resolutions = len(task.feed.shapes)
    several = f", the largest of {resolutions} resolutions" if resolutions > 1 else ""
    parts = f", in {options.accumulate} parts" if options.accumulate > 1 else ""
    probes = f"{_several(len(task.probes.layer_ids), 'probe')} on {printable(options.backbone)} in {options.dtype}"
    return [
        f"{plan.topology.name}: {_several(plan.devices, 'device')} ({plan.device_kind}), {_several(plan.hosts, 'host')}",
        f"{probes}, {width}×{height} pixels{several}",
        f"{_several(plan.pairs * plan.devices, _thing(plan))} a step, {plan.pairs} on each device{parts}",
    ]


def _thing(plan: Plan) -> str:
    return "pair" if plan.task.feed.views == 2 else "set"


def _memory(plan: Plan) -> list[str]:
    views = plan.task.feed.views
    sets = _several(plan.pairs, _thing(plan)) + (f" of {views} views" if views > 2 else "")
    title = f"Memory of each device at {sets}, by XLA's analysis of the compiled step"
    memory = plan.tried[plan.pairs]
    if isinstance(memory, str):
        return [title, f"  does not compile for {_bytes(plan.limit)}: {printable(memory)}"]
    prefix, unit = _prefix([memory.total])
    kinds = {label: getattr(memory, kind) for kind, label in _KINDS.items()} | {"total": memory.total}
    table = text_table(["", f"{prefix}B"], [(label, f"{value / unit:.2f}") for label, value in kinds.items()], numbers_from=1, indent=2)
    margin = plan.limit - memory.total
    verdict = f"fits, {_bytes(margin)} to spare" if margin >= 0 else f"does not fit, {_bytes(-margin)} too much"
    return [title, table, f"  of {_bytes(plan.limit)}: {verdict}"]


def _largest(plan: Plan) -> list[str]:
    found = plan.largest
    if found is None:
        return []
    if not found.pairs:
        return [f"Largest batch that fits: none was found, down to {_several(found.too_many or 1, _thing(plan))} on each device"]
    lines = [f"Largest batch that fits: {_several(found.pairs, _thing(plan))} on each device, --batch-size {found.pairs * plan.devices}"]
    lines.append(f"  verified by compiling it: {_bytes(found.total)} of {_bytes(plan.limit)}")
    if found.too_many is None:
        return [*lines, f"  more may fit: the search ends after {MOST_COMPILATIONS} compilations"]
    tried = plan.tried.get(found.too_many)
    if tried is None:
        return [*lines, f"  {found.too_many} do not, by extrapolation"]
    return [*lines, f"  {found.too_many} do not: {printable(tried) if isinstance(tried, str) else _bytes(tried.total)}"]


def _work(plan: Plan) -> list[str]:
    counts = [part.count for part in plan.parts]
    flop, flop_unit = _prefix([count.flops for count in counts])
    byte, byte_unit = _prefix([count.traffic for count in counts])
    other, other_unit = _prefix([count.elementwise for count in counts])
    head = ["", f"products {flop}FLOP", "as", f"moved {byte}B", f"sent {byte}B", f"other {other}FLOP"]

    def row(name: str, kinds: str, parts: Sequence[Part]) -> list[str]:
        cells = [
            name,
            f"{sum(part.count.flops for part in parts) / flop_unit:.2f}",
            kinds,
            f"{sum(part.count.traffic for part in parts) / byte_unit:.2f}",
            f"{sum(part.exchanged for part in parts) / byte_unit:.2f}",
            f"{sum(part.count.elementwise for part in parts) / other_unit:.2f}",
        ]
        return cells if plan.chip is None else [*cells, f"{1e3 * sum(seconds(part, plan.chip) for part in parts):.1f}"]

    def kinds(part: Part) -> str:
        # Kinds that make up less than a hundredth of the products are left out.
        shown = [kind for kind, flops in part.count.products.items() if flops * 100 > part.count.flops]
        return ", ".join(f"{dtype} {precision}" if dtype == "float32" else dtype for dtype, precision in shown)

    rows = [*(row(part.name, kinds(part), [part]) for part in plan.parts), row("a step", "", plan.parts)]
    return [
        "Work of each device, counted in the step's own program with every iteration of its loops. Moved: operands and results of",
        "matrix products, as if each read and wrote memory, and the state. Other: elementwise arithmetic, which has no share in the times.",
        text_table(head if plan.chip is None else [*head, "least ms"], rows, numbers_from=1, indent=2),
    ]


def _time(plan: Plan) -> list[str]:
    if plan.topology.platform == "cpu":
        return ["No estimate of the time: no peaks are published for this CPU. Time a few steps instead (--steps 5)."]
    chip = plan.chip
    if chip is None:
        return [f"No estimate of the time: the peaks of {plan.device_kind} are not listed in und3rstand_jax/train/plan/chips.py."]
    step = sum(seconds(part, chip) for part in plan.parts)
    rate, steps = plan.pairs * plan.devices / step, plan.task.options.steps
    run = f"{step * steps / 3600:.1f} h" if step * steps >= 3600 else f"{step * steps / 60:.1f} min"
    precision = plan.task.precision.name.lower()
    peaks = (
        f"{chip.name}, {chip.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{chip.rate('float32', precision) / 1e12:.0f} in float32 at precision {precision}, "
        f"{_bytes(chip.bandwidth)}/s of memory, {_bytes(chip.interconnect)}/s to other chips"
    )
    return [
        f"Estimate: {step:.3g} s a step, {rate:.3g} pairs/s, {run} for {steps} steps",
        f"  from published peaks: {peaks};",
        "  each part at its fastest, one after the other: real steps take longer",
    ]


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _prefix(values: Sequence[float]) -> tuple[str, float]:
    """The SI prefix with which the largest value has one to three digits before the point, and its factor."""
    largest = max(values)
    return next(((name, unit) for name, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if largest >= unit), ("k", 1e3))


def _bytes(value: float) -> str:
    prefix, unit = _prefix([value])
    return f"{value / unit:.4g} {prefix}B"
