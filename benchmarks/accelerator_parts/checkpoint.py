"""The model that is measured: its deterministic weights as a PyTorch checkpoint and as a converted one, made on the host."""

from pathlib import Path

from benchmarks.accelerator_parts.packages import imported
from benchmarks.workers import both_layouts


class Checkpoints:
    """Makes checkpoints in a process without a device, while the device's own process measures."""

    def make(self, case: str, work: Path) -> dict[str, str]:
        """Folders of the model and of the pocket model; whatever is already in `work` is not made again.

        Returns:
            "torch" and "jax", the two layouts of the case, and "pocket", converted.
        """
        from tests.conversion import converted

        folders = both_layouts(case, work)
        pocket = work / "pocket"
        if not (pocket / "config.json").is_file():
            converted(Path(__file__).parents[2] / "pocket", pocket)
        return {"torch": str(folders[0]), "jax": str(folders[1]), "pocket": str(pocket)}

    def imported(self) -> list[str]:
        """Distributions imported so far."""
        return imported()
