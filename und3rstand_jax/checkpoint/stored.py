"""The parameter trees of a converted checkpoint: Orbax's folders, or safetensors files, as its list of files says."""

from pathlib import Path

from und3rstand_jax.checkpoint.format import REMEDY, CheckpointInfo, tree_file
from und3rstand_jax.checkpoint.leaves import StoredTree
from und3rstand_jax.checkpoint.orbax_tree import orbax_tree
from und3rstand_jax.checkpoint.safetensors_tree import safetensors_tree
from und3rstand_jax.model.families import backbone_shapes
from und3rstand_jax.model.tensor_names import Shape
from und3rstand_jax.support.errors import CheckpointError


def expected_shapes(info: CheckpointInfo, part: str) -> dict[str, Shape]:
    """Path -> shape of every leaf that the config of "backbone" or "probes" implies."""
    if part == "backbone":
        assert info.backbone is not None
        return backbone_shapes(info.backbone)
    from flax.traverse_util import flatten_dict

    from und3rstand_jax.probes.probes import probe_shapes

    assert info.probes is not None
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(probe_shapes(info.probes), sep="/").items()}


def stored_tree(root: Path, info: CheckpointInfo, part: str) -> StoredTree:
    """Checks the tree of a part of the checkpoint `root`. Faults of single leaves are listed, not raised.

    Raises:
        CheckpointError: the tree is missing or unreadable, or something in it is a link that leads out of the checkpoint.
    """
    file, folder = tree_file(root, part), root / part
    is_file = file.name in info.files
    place = file if is_file else folder
    if not (file.is_file() if is_file else folder.is_dir()):
        raise CheckpointError(f"{place} is missing; the checkpoint is incomplete: {REMEDY}")
    shapes = expected_shapes(info, part)
    return safetensors_tree(file, root, part, shapes) if is_file else orbax_tree(folder, root, shapes)
