"""The parity table: `python -m benchmarks.parity`.

Our error over the original's own float32 error, both against the original's float64 outputs, per group of layers: 1 is as exact as
PyTorch in float32. Every case goes through a file and `python -m convert`.
"""

import argparse
import re
import statistics
import tempfile
from pathlib import Path

from tests.conversion import converted
from tests.golden_cases import FULL_CASE, SMALL_CASES, load_golden
from tests.make_checkpoint import save_hub_folder
from tests.parity import error_ratios
from und3rstand_jax.support.text import markdown_table

ALL = "all arrays"


def main() -> None:
    """Prints a row for each group of layers: worst and median ratio of every case."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import und3rstand_jax as u3d

    columns = {}
    for name in (*SMALL_CASES, FULL_CASE):
        golden = load_golden(name)
        weights = {key: tensor for key, tensor in golden.state_dict.items() if ".layer_rn." not in key}
        with tempfile.TemporaryDirectory() as folder:
            source = save_hub_folder(Path(folder) / "hub", weights, golden.config)
            weights.clear()
            golden.state_dict.clear()
            backbone = u3d.load_backbone(converted(source, Path(folder) / "jax"))
            columns[name] = by_group(error_ratios(golden, backbone))
    groups = [group for group in dict.fromkeys(group for column in columns.values() for group in column) if group != ALL]

    def cell(ratios: list[float] | None) -> str:
        return "" if ratios is None else f"{max(ratios):.2f}, {statistics.median(ratios):.2f}"

    rows = [(group, *(cell(column.get(group)) for column in columns.values())) for group in (*groups, ALL)]
    print(markdown_table(("layers", *(f"{name} worst, median" for name in columns)), rows))


def by_group(ratios: dict[str, float]) -> dict[str, list[float]]:
    """The values of arrays by layer, all blocks of a stack together, and those of all arrays last."""
    groups: dict[str, list[float]] = {}
    for name, ratio in ratios.items():
        layer = re.sub(r"\.\d+\.", ".*.", name.rsplit("/", 1)[0])
        groups.setdefault(layer, []).append(ratio)
    return {**groups, ALL: list(ratios.values())}


if __name__ == "__main__":
    main()
