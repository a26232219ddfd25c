"""Pointmaps as coloured point clouds other programs open (PLY).

Two photos through a model and its probes, and everything that came out into one folder of files.

layers/LAYER.npz          pts3d1 (H, W, 3), conf1 (H, W), pts3d2, conf2: float32, both views in view 1's camera frame
point_clouds/LAYER.ply    both views' points in the colours of their photos
head.npz, point_clouds/head.ply    the same of the model's own head
contact_sheet.png         depth and confidence of every layer beside the photos
run.json                  what was run, on what, with which versions, and how long it took
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from und3rstand_jax.checkpoint.output_folder import output_folder
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.model.images import Preprocessing, load_image, to_uint8
from und3rstand_jax.model.layer_ids import HEAD, select_layers
from und3rstand_jax.model.pointmap import Pointmap
from und3rstand_jax.report.contact_sheet import ContactSheet
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.machine import machine_facts

_FRAME = "camera frame of the first photo: x right, y down, z forward; the model's own unit of length"


def write_point_cloud(
    path: str | os.PathLike[str], points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"], title: str = "und3rstand_jax"
) -> int:
    """Writes points with their colours as binary PLY and returns how many were dropped because they are not finite.

    Points keep the frame and unit DUSt3R gives them: view 1's camera frame (x right, y down, z forward), a unit of the
    model's own (its pointmaps are metric only up to scale). Both are said in the file's header, with `title`.

    Raises:
        OSError: the file cannot be written.
    """
    finite = np.isfinite(points).all(axis=1)
    with open(path, "wb") as file:
        file.write(_with_comments(_ply(points[finite], colors[finite]), (title, _FRAME)))
    return int(len(points) - finite.sum())


def _ply(points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"]) -> bytes:
    import trimesh

    cloud = trimesh.PointCloud(points, colors=colors)
    return trimesh.exchange.ply.export_ply(cloud, encoding="binary")


def _with_comments(ply: bytes, comments: tuple[str, ...]) -> bytes:
    """The PLY with comment lines after its `format` line; trimesh has no argument for them."""
    magic, form, rest = ply.split(b"\n", 2)
    lines = [magic, form, *(b"comment " + " ".join(comment.split()).encode("ascii", "replace") for comment in comments)]
    return b"\n".join([*lines, rest])


Dtype = Literal["float32", "bfloat16"]


RECORD = "run.json"


class Features(Protocol):
    """What a model returns: captured tokens (read by probes alone) and, if the head ran, both its pointmaps."""

    @property
    def pred1(self) -> Pointmap | None:
        """Pointmap of view 1."""
        ...

    @property
    def pred2(self) -> Pointmap | None:
        """Pointmap of view 2, in view 1's frame."""
        ...


class Model(Protocol):
    """A backbone bound to its parameters."""

    @property
    def config(self) -> BackboneConfig:
        """The architecture; its `head_type` says whether there is a head."""
        ...

    def __call__(self, view1: Any, view2: Any, *, capture: Sequence[str], head: bool) -> Features:
        """One forward pass."""
        ...


class Probes(Protocol):
    """Probes bound to their parameters."""

    @property
    def layer_ids(self) -> tuple[str, ...]:
        """The probed layers, in the order of the outputs."""
        ...

    def read_layer(self, layer_id: str, features: Any) -> tuple[Pointmap, Pointmap]:
        """Both views' pointmaps of one layer."""
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person asks for. `layers` is a selection as in `und3rstand_jax.model.layer_ids`; None is every probed layer."""

    photos: tuple[Path, Path]
    checkpoint: str
    out: Path
    layers: str | None = None
    preprocessing: Preprocessing = "probe"
    size: int = 512
    dtype: Dtype = "float32"
    overwrite: bool = False


Loader = Callable[[str, Dtype], tuple[Model, Probes | None]]


def load_model(checkpoint: str, dtype: Dtype) -> tuple[Model, Probes | None]:
    """The backbone of a checkpoint, in that dtype, and its probes where it has any.

    Raises:
        UserError: the checkpoint cannot be loaded, or holds no model.
    """
    from und3rstand_jax.checkpoint.format import read_checkpoint_info
    from und3rstand_jax.loading import converted_checkpoint, load_backbone, load_backbone_and_probe

    folder = converted_checkpoint(checkpoint)
    if read_checkpoint_info(folder).has_probes:
        return load_backbone_and_probe(folder, dtype=dtype)
    return load_backbone(folder, dtype=dtype), None


def run(request: Request, load: Loader = load_model) -> None:
    """Runs the request and writes its folder, which appears whole or not at all; progress goes to stderr.

    Raises:
        UserError: a photo, the checkpoint, the selection or the output folder cannot be used.
        OSError: the files cannot be written.
    """
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    # Photos and folder come first: what can be refused without the model is refused before the time that loading takes.
    view1, view2 = (load_image(photo, request.preprocessing, request.size) for photo in request.photos)
    photos = to_uint8(view1[0]), to_uint8(view2[0])
    with output_folder(request.out, request.overwrite, _is_run) as folder:
        _say(f"loading {request.checkpoint}")
        with _timed(seconds, "load"):
            model, probes = load(request.checkpoint, request.dtype)
        layers = choose_layers(model.config, None if probes is None else probes.layer_ids, request.layers)
        has_head = model.config.head_type is not None
        _announce(layers, has_head, probes is not None)

        _say(f"running the model on {_size(view1)} and {_size(view2)} pixels")
        with _timed(seconds, "model"):
            # JAX returns before it has computed; without waiting, the first layer would seem to take all the time.
            features = jax.block_until_ready(model(view1, view2, capture=layers, head=has_head))
        with _timed(seconds, "probes and files"):
            outputs = _write_outputs(folder, photos, _predictions(features, probes, layers), len(layers) + has_head)
        seconds["total"] = time.perf_counter() - start
        record = _record(request, photos, layers, has_head, outputs, seconds)
        (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _say(f"wrote {request.out} in {seconds['total']:.1f} s")


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def choose_layers(config: BackboneConfig, probed: Sequence[str] | None, selection: str | None) -> tuple[str, ...]:
    """The probed layers a selection asks for, in network order; `probed` is None where there are no probes.

    Raises:
        UserError: nothing is left to write, or the selection names a layer without a probe.
    """
    if probed is None:
        if selection is not None:
            raise UserError(f"--layers {selection}: this checkpoint has no probes to decode layers with; leave --layers out")
        if config.head_type is None:
            raise UserError("this checkpoint has neither a head nor probes, which pointmaps come from; convert it together with probes")
        return ()
    in_order = [layer for layer in config.layer_ids if layer in probed]
    layers = select_layers("*" if selection is None else selection, in_order)
    if not layers:
        raise UserError(f"--layers {selection!r} selects nothing; give layer ids or patterns, such as decoder.*.mlp")
    return layers


def _announce(layers: Sequence[str], has_head: bool, has_probes: bool) -> None:
    if not has_probes:
        _say("this checkpoint has no probes: writing the output of the model's own head alone")
    elif not has_head:
        _say(f"this checkpoint has no head: writing the output of its probes alone ({len(layers)} layers)")


def _predictions(features: Features, probes: Probes | None, layers: Sequence[str]) -> Iterator[tuple[str, Pointmap, Pointmap]]:
    """Pointmaps of one layer after the other, the head's last; only the tokens of all layers are held at once."""
    if probes is not None:
        for layer in layers:
            yield layer, *probes.read_layer(layer, features)
    if features.pred1 is not None and features.pred2 is not None:
        yield HEAD, features.pred1, features.pred2


def _write_outputs(
    folder: Path, photos: tuple[np.ndarray, np.ndarray], predictions: Iterator[tuple[str, Pointmap, Pointmap]], count: int
) -> dict[str, dict[str, Any]]:
    """Writes each layer's files as it comes, then the contact sheet; returns what run.json says of each."""
    sheet = ContactSheet(*photos, rows=count, title="What each layer knows of the scene")
    outputs = {}
    with tqdm(total=count + 1, file=sys.stderr, desc="writing", unit="output") as progress:
        for name, *both in predictions:
            progress.set_postfix_str(name)
            pred1, pred2 = (_first_of_batch(prediction) for prediction in both)
            outputs[name] = _write_output(folder, name, photos, pred1, pred2)
            sheet.add_row("the model's own head" if name == HEAD else name, pred1, pred2)
            progress.update()
        progress.set_postfix_str("contact sheet")
        sheet.write(folder / "contact_sheet.png")
        progress.update()
    return outputs


def _first_of_batch(prediction: Pointmap) -> dict[str, Float[np.ndarray, "H W *C"]]:
    return {name: np.asarray(prediction[name], np.float32)[0] for name in ("pts3d", "conf") if name in prediction}


def _write_output(
    folder: Path, name: str, photos: tuple[UInt8[np.ndarray, "H W 3"], ...], pred1: dict[str, np.ndarray], pred2: dict[str, np.ndarray]
) -> dict[str, Any]:
    file = f"{HEAD}.npz" if name == HEAD else f"layers/{name}.npz"
    cloud = f"point_clouds/{name}.ply"
    arrays: dict[str, Any] = {
        f"{array}{view}": values for view, prediction in ((1, pred1), (2, pred2)) for array, values in prediction.items()
    }
    for path in (file, cloud):
        (folder / path).parent.mkdir(exist_ok=True)
    np.savez(folder / file, **arrays)
    points = np.concatenate([prediction["pts3d"].reshape(-1, 3) for prediction in (pred1, pred2)])
    colors = np.concatenate([photo.reshape(-1, 3) for photo in photos])
    dropped = write_point_cloud(folder / cloud, points, colors, title=f"und3rstand_jax: {name}")
    if dropped:
        tqdm.write(f"{name}: {dropped} of {len(points)} points are not finite and are left out of {cloud}", file=sys.stderr)
    return {"arrays": file, "point_cloud": cloud, "points": len(points) - dropped, "points_not_finite": dropped}


def _record(
    request: Request,
    photos: tuple[np.ndarray, np.ndarray],
    layers: Sequence[str],
    has_head: bool,
    outputs: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    sizes = [{"height": pixels.shape[0], "width": pixels.shape[1]} for pixels in photos]
    return {
        "photos": [{"path": str(path), **size} for path, size in zip(request.photos, sizes, strict=True)],
        "preprocessing": request.preprocessing,
        "size": request.size,
        "checkpoint": request.checkpoint,
        "dtype": request.dtype,
        "layers": list(layers),
        "head": has_head,
        "frame": "camera of the first photo: x right, y down, z forward; unit of length: the model's own",
        "outputs": outputs,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        **machine_facts(),
    }


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _size(view: np.ndarray) -> str:
    return f"{view.shape[2]}×{view.shape[1]}"


def _say(message: str) -> None:
    print(message, file=sys.stderr)
