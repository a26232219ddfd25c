"""Texts of options that have a grammar of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.contract import Files, Kind


def _of(name: str, parse: Callable[[str], object], *texts: str) -> Kind:
    """A kind whose inputs are texts."""

    def seeds() -> Sequence[Files]:
        return [{"option.txt": text.encode()} for text in texts]

    def call(folder: Path) -> object:
        # As a shell hands arguments over: what is not UTF-8 is kept.
        return parse((folder / "option.txt").read_bytes().decode("utf-8", "surrogateescape"))

    return Kind(name, seeds, call)


def _data(text: str) -> object:
    from und3rstand_jax.data.specification import parse_data

    return parse_data((text,))


def _image_size(text: str) -> object:
    from und3rstand_jax.support.option_values import parse_image_size

    return parse_image_size(text, 16, "--resolution")


def _layers(text: str) -> object:
    from und3rstand_jax.model.layer_ids import layer_ids, select_layers

    return select_layers(text, layer_ids(24, 12))


def _depth_mode(text: str) -> object:
    from und3rstand_jax.convert.options import ProbeOptions

    return ProbeOptions(depth_mode=text).settings


def _confidence_mode(text: str) -> object:
    from und3rstand_jax.convert.options import ProbeOptions

    return ProbeOptions(conf_mode=text).settings


def _probe_layers(text: str) -> object:
    from und3rstand_jax.convert.options import ProbeOptions

    return ProbeOptions(probe_layers=text).layers


def _topology(text: str) -> object:
    from und3rstand_jax.train.plan.topology import parse_topology

    return parse_topology(text)


KINDS = (
    _of("data specification", _data, "0.7*synthetic:overlap=0.5-0.9,baseline=0.1-1", "synthetic", "2*pairs:~/photos", "co3d:/data/co3d"),
    _of("image size", _image_size, "512x384", "512", "512×384"),
    _of("layer patterns", _layers, "decoder.*.mlp,encoder.norm", "all", "encoder.[0-3].self_attn"),
    _of("depth mode", _depth_mode, "exp,-inf,inf", "exp", "linear"),
    _of("confidence mode", _confidence_mode, "exp,1,inf", "sigmoid,0,1"),
    _of("probe layers", _probe_layers, "decoder.0.mlp, decoder.1.mlp"),
    _of("topology", _topology, "v5e:2x4", "cpu", "v5p:2x2x1"),
)
