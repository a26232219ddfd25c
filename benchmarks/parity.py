"""The parity table: `python -m benchmarks.parity`.

Our error divided by the original's own float32 error, both against the original's float64 outputs, per group of layers: 1 is as exact as
PyTorch in float32. Every case goes through a file and `python -m convert`. `--model vggt` runs VGGT's cases. `--json docs/parity.json`
also keeps the figures in that file, from which `python -m benchmarks.parity_tables` writes the tables of docs/parity.md.
"""

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import golden_vggt
from tests.conversion import converted
from tests.golden_cases import FULL_CASE, SMALL_CASES, load_golden
from tests.make_checkpoint import save_hub_folder
from tests.parity import error_ratios
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.support.text import markdown_table

ALL = "all arrays"

Cases = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Case -> group of layers -> "worst" and "median"."""


def main() -> None:
    """Prints a row for each group of layers: worst and median ratio of every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("dust3r", "vggt"), default="dust3r", help="whose cases (default: dust3r's and MASt3R's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in this file, beside those of other models")
    given = parser.parse_args()
    of_vggt = given.model == "vggt"
    names = (golden_vggt.SMALL_CASE, golden_vggt.FULL_CASE) if of_vggt else (*SMALL_CASES, FULL_CASE)
    cases = {name: figures(_vggt_ratios(name) if of_vggt else _ratios(name)) for name in names}
    if given.json:
        kept = json.loads(given.json.read_text()) if given.json.exists() else {}
        command = "python -m benchmarks.parity" + (" --model vggt" if of_vggt else "")
        given.json.write_text(json.dumps(kept | {given.model: {"command": command, "cases": cases}}, indent=1) + "\n")
    print(table(cases))


def table(cases: Cases) -> str:
    """A row for each group of layers, in Markdown: worst and median of every case."""
    # In the order of the case with the most groups, in which each group has its place.
    groups = [
        group for group in dict.fromkeys(group for case in sorted(cases.values(), key=len, reverse=True) for group in case) if group != ALL
    ]

    def cell(values: Mapping[str, float] | None) -> str:
        return "" if values is None else f"{values['worst']:.2f}, {values['median']:.2f}"

    rows = [(group, *(cell(case.get(group)) for case in cases.values())) for group in (*groups, ALL)]
    return markdown_table(("layers", *cases), rows)


def figures(ratios: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Group of layers -> the worst and the median of its arrays, to two places."""
    groups = by_group(ratios)
    return {group: {"worst": round(max(values), 2), "median": round(statistics.median(values), 2)} for group, values in groups.items()}


def _ratios(name: str) -> dict[str, float]:
    golden = load_golden(name)
    weights = {key: tensor for key, tensor in golden.state_dict.items() if ".layer_rn." not in key}
    golden.state_dict.clear()
    return _of_file(weights, golden.config, lambda backbone: error_ratios(golden, backbone))


def _vggt_ratios(name: str) -> dict[str, float]:
    from tests.make_checkpoint import vggt_config
    from tests.vggt_golden_models import error_ratios

    case = golden_vggt.load_vggt_case(name)
    weights = dict(case.state_dict)
    case.state_dict.clear()
    return _of_file(weights, vggt_config(case.config).to_hub_config(), lambda backbone: error_ratios(case, backbone))


def _of_file(
    weights: dict[str, np.ndarray], config: Mapping[str, Any], measured: Callable[[Backbone], dict[str, float]]
) -> dict[str, float]:
    """The measurements of a model that was converted from a file; the weights are released once they are in the file."""
    import und3rstand_jax as u3d

    with tempfile.TemporaryDirectory() as folder:
        source = save_hub_folder(Path(folder) / "hub", weights, config)
        weights.clear()
        return measured(u3d.load_backbone(converted(source, Path(folder) / "jax")))


def by_group(ratios: Mapping[str, float]) -> dict[str, list[float]]:
    """The values of arrays by layer, all blocks of a stack together, and those of all arrays last."""
    groups: dict[str, list[float]] = {}
    for name, ratio in ratios.items():
        layer = re.sub(r"\.\d+\.", ".*.", name.rsplit("/", 1)[0])
        groups.setdefault(layer, []).append(ratio)
    return {**groups, ALL: list(ratios.values())}


if __name__ == "__main__":
    main()
