"""The parity table: `python -m benchmarks.parity`.

Our error over the original's own float32 error, both against the original's float64 outputs, per group of layers: 1 is as exact as
PyTorch in float32. Every case goes through a file and `python -m convert`. `--model vggt` has VGGT's cases.
"""

import argparse
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


def main() -> None:
    """Prints a row for each group of layers: worst and median ratio of every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("dust3r", "vggt"), default="dust3r", help="whose cases (default: dust3r's and MASt3R's)")
    of_vggt = parser.parse_args().model == "vggt"
    names = (golden_vggt.SMALL_CASE, golden_vggt.FULL_CASE) if of_vggt else (*SMALL_CASES, FULL_CASE)
    columns = {name: by_group(_vggt_ratios(name) if of_vggt else _ratios(name)) for name in names}
    groups = [group for group in dict.fromkeys(group for column in columns.values() for group in column) if group != ALL]

    def cell(ratios: list[float] | None) -> str:
        return "" if ratios is None else f"{max(ratios):.2f}, {statistics.median(ratios):.2f}"

    rows = [(group, *(cell(column.get(group)) for column in columns.values())) for group in (*groups, ALL)]
    print(markdown_table(("layers", *(f"{name} worst, median" for name in columns)), rows))


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
    """What is measured of a model that was converted from a file; the weights are released once they are in it."""
    import und3rstand_jax as u3d

    with tempfile.TemporaryDirectory() as folder:
        source = save_hub_folder(Path(folder) / "hub", weights, config)
        weights.clear()
        return measured(u3d.load_backbone(converted(source, Path(folder) / "jax")))


def by_group(ratios: dict[str, float]) -> dict[str, list[float]]:
    """The values of arrays by layer, all blocks of a stack together, and those of all arrays last."""
    groups: dict[str, list[float]] = {}
    for name, ratio in ratios.items():
        layer = re.sub(r"\.\d+\.", ".*.", name.rsplit("/", 1)[0])
        groups.setdefault(layer, []).append(ratio)
    return {**groups, ALL: list(ratios.values())}


if __name__ == "__main__":
    main()
