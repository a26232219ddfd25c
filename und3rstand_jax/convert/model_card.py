"""The model card of a converted checkpoint: what it is, where it comes from, how it was trained, what it may be used for.

A card is made from the checkpoint's `config.json` alone. Its header is that of the Hugging Face hub.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.content import Results
from und3rstand_jax.checkpoint.format import CheckpointInfo, read_checkpoint_info, write_checkpoint_info
from und3rstand_jax.convert.licences import Licence, known_licences, strictest
from und3rstand_jax.convert.sources.layout import CARD, looks_like_hub_id, split_hub_id
from und3rstand_jax.model.families import family_of
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.support.text import markdown_table, printable

LIBRARY = "und3rstand_jax"
_TASK = "image-to-3d"
_MOST_DIGESTS = 20  # files of a source that a card lists


def add_results(folder: Path, part: str, results: Results) -> Path:
    """Records training results in the converted checkpoint of what was trained, and writes its model card there.

    Args:
        folder: the checkpoint.
        part: what was trained, "backbone" or "probes".
        results: how it was trained, and how good it is.

    Returns:
        The card, `README.md`, which becomes a file of the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        OSError: a file cannot be written.
    """
    info = read_checkpoint_info(folder)
    provenance = {**info.provenance, part: {**info.provenance[part], "results": results}}
    info = dataclasses.replace(info, provenance=provenance)
    # The list of files goes first: a card that it does not name would count as somebody else's file.
    write_checkpoint_info(folder, info, (*info.files, CARD))
    replace_text(folder / CARD, model_card(info, folder.resolve().name, _licence_of(info)))
    return folder / CARD


def _licence_of(info: CheckpointInfo) -> Licence | None:
    """The strictest licence of its parts; None unless that of each is known and one is the strictest."""
    known, unknown = known_licences(info.provenance)
    try:
        return None if unknown or not known else strictest(known)
    except OptionError:  # whoever publishes it has to separate its parts
        return None


def results_card(name: str, what: str, results: Results, info: CheckpointInfo) -> str:
    """The card, as Markdown under a header in YAML, of something trained on a backbone that is not a checkpoint itself.

    Args:
        name: what to call it.
        what: a sentence that says what it is.
        results: how it was trained, and how good it is.
        info: the backbone's checkpoint. Its licence also holds for what was trained on it.
    """
    licence = _licence_of(info)
    title = f"---\n{_header(info, name, licence, [results], ['probes'])}\n---\n\n# {printable(name)}\n\n{what}\n"
    return "\n".join([title, _training(results), *_origin(info), _licence(licence)])


def model_card(info: CheckpointInfo, name: str, licence: Licence | None) -> str:
    """The card as Markdown under a header in YAML.

    Args:
        info: the checkpoint's contents.
        name: the name by which it is loaded: a hub id, or the name of its folder.
        licence: the licence under which it is published; with None, the card says that it is not stated.
    """
    all_results = [info.provenance[part]["results"] for part in info.parts if "results" in info.provenance[part]]
    tags = ["pointmap", *(["probes"] if info.probes is not None else [])]
    sections = [
        f"---\n{_header(info, name, licence, all_results, tags)}\n---\n",
        f"# {printable(name.rpartition('/')[2])}\n",
        *_what_it_is(info),
        *_use(info, name),
        *map(_training, all_results),
        *_origin(info),
        _licence(licence),
    ]
    return "\n".join(sections)


def _header(info: CheckpointInfo, name: str, licence: Licence | None, all_results: Sequence[Results], tags: Sequence[str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type=_TASK,
            dataset_type=LIBRARY,
            dataset_name=results["data"],
            metric_type=metric["type"],
            metric_name=metric["name"],
            metric_value=metric["value"],
        )
        for results in all_results
        for metric in results["metrics"]
    ]
    family = [] if info.backbone is None else [family_of(info.backbone).name]
    data = ModelCardData(
        license=None if licence is None else licence["id"],
        license_name=None if licence is None else licence["name"],
        license_link=None if licence is None else licence["link"],
        library_name=LIBRARY,
        pipeline_tag=_TASK,
        base_model=base_models(info.provenance) or None,
        tags=[*family, *tags, "jax", "flax"],
        model_name=name.rpartition("/")[2] if found else None,  # of the results' list alone
        eval_results=found or None,
    )
    return data.to_yaml()


def base_models(provenance: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The hub ids from which the weights were converted or their training started; for an export, those that its header names."""
    ids: list[str] = []
    for record in provenance.values():
        origin: Mapping[str, Any] | None = record
        while origin is not None:
            if origin.get("kind") == "hub":
                ids.append((split_hub_id(origin["source"]) or (origin["source"],))[0])
            else:
                ids += filter(looks_like_hub_id, origin.get("metadata", {}).get("base_model", "").split(", "))
            origin = origin.get("start")
    return list(dict.fromkeys(ids))


def _what_it_is(info: CheckpointInfo) -> list[str]:
    parts = []
    if info.backbone is not None:
        record = info.provenance["backbone"]
        blocks = len(info.backbone.blocks)
        parts.append(
            f"- **Backbone**: {printable(record.get('variant') or family_of(info.backbone).name)}, {blocks} blocks in which views meet, "
            f"images of {info.backbone.img_size[1]}×{info.backbone.img_size[0]} pixels."
        )
    if info.probes is not None:
        layers = info.probes.layer_ids
        parts.append(
            f"- **Probes**: an MLP on each of {len(layers)} layers, `{layers[0]}` to `{layers[-1]}`, that decodes a pointmap from it."
        )
    return ["\n".join([*parts, ""])]


def _use(info: CheckpointInfo, name: str) -> list[str]:
    load = "model, probes = u3d.load_backbone_and_probe" if info.probes is not None else "model = u3d.load_backbone"
    return [
        "## Use\n",
        f'```python\nimport und3rstand_jax as u3d\n\n{load}("{printable(name)}")\nview1, view2 = u3d.load_image("a.jpg"), '
        'u3d.load_image("b.jpg")\n'
        + ("outputs = probes(model(view1, view2))\n```\n" if info.probes is not None else "output = model(view1, view2)\n```\n"),
        "The weights are here twice, with equal values: in PyTorch's names and layout, and in `jax/` as JAX's parameter tree, in which "
        "every tensor is called by its path (`backbone/encoder/norm/scale`).\n"
        if "/" in name
        else "",
    ]


def _training(results: Results) -> str:
    lines = [
        "## Training\n",
        f"{results['steps']:,} steps on {printable(results['data'])}:\n",
        f"    {printable(results['command'])}\n",
        "## Metrics by layer\n" if len(results["rows"]) > 1 else "## Metrics\n",
        markdown_table([printable(cell) for cell in results["head"]], results["rows"]),
        f"\n{printable(results['note'])}\n",
    ]
    return "\n".join(lines)


def _origin(info: CheckpointInfo) -> list[str]:
    lines = ["## Where it comes from\n"]
    for part in info.parts:
        record = info.provenance[part]
        at = f" at commit {record['revision']}" if record["revision"] else ""
        lines.append(f"- **{part}**: {_source_text(record, at)}, written by {printable(record.get('converter', LIBRARY))}.")
        if record["kind"] == "training":
            continue
        lines += [f"  - `{printable(file)}` SHA-256 `{digest}`" for file, digest in [*record["sha256"].items()][:_MOST_DIGESTS]]
    return ["\n".join([*lines, ""])]


def _source_text(record: Mapping[str, Any], at: str) -> str:
    if record["kind"] != "training":
        return f"converted from `{printable(record['source'])}`{at}, every tensor bit for bit"
    start = record.get("start")
    if start is None:
        return "trained from random parameters"
    return f"trained, starting from {'what was trained before' if start['kind'] == 'training' else '`' + printable(start['source']) + '`'}"


def _licence(licence: Licence | None) -> str:
    if licence is None:
        return (
            "## Licence\n\nNot stated: it has to be before this is published, and must not be freer than that of what it was made from.\n"
        )
    name = f" ({printable(licence['name'])})" if licence["name"] else ""
    link = f", {printable(licence['link'])}" if licence["link"] else ""
    return f"## Licence\n\n{licence['id']}{name}{link}, as stated by {printable(licence['found'])}.\n"
