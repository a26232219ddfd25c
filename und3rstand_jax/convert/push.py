"""A converted checkpoint to the Hugging Face hub: in PyTorch's layout, in JAX's beside it, and with a model card.

README.md                                    the card
model.safetensors, config.json               what `--to-torch` exports; of parts from different sources in `backbone/` and `probes/`
jax/config.json, jax/backbone.safetensors, … what `load_backbone` reads without a conversion (`jax_layout.py`)
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import CONFIG, JAX, read_checkpoint_info, tree_file, unused_file
from und3rstand_jax.convert.export import export_checkpoint
from und3rstand_jax.convert.hub_upload import MAIN, Target, upload
from und3rstand_jax.convert.jax_layout import write_jax_layout
from und3rstand_jax.convert.licences import Licence, licence_record, licence_to_publish
from und3rstand_jax.convert.model_card import LIBRARY, model_card
from und3rstand_jax.convert.options import HubAccess
from und3rstand_jax.convert.sources.layout import CARD, PARTS, looks_like_hub_id
from und3rstand_jax.data.files.file_sets import KINDS
from und3rstand_jax.support.errors import OptionError, OutputError
from und3rstand_jax.support.files import in_home
from und3rstand_jax.support.locks import locked
from und3rstand_jax.support.output_folder import check_free_space
from und3rstand_jax.support.results import files_in
from und3rstand_jax.support.text import printable

OWN_FILES = frozenset(
    [f"{place}{name}" for place in ("", *(f"{part}/" for part in PARTS)) for name in ("model.safetensors", CONFIG)]
    + [f"{JAX}/{name}" for name in (CONFIG, *(file(Path(), part).name for part in PARTS for file in (tree_file, unused_file)))]
)
"""Everything that an upload may consist of but for the card: what of it is left over from an earlier one is removed by the next."""

_PATH = re.compile(r"((?:[^*:/]+\*)?(?:\w+:)?)(?:/|~|\.\.?/).*?([^/]+)/*", re.DOTALL)
_DATA_SET = re.compile(rf"((?:[^*:]+\*)?\s*(?:{'|'.join(KINDS)})\s*:).*?([^/]+)/*", re.DOTALL)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """What was uploaded, or would be.

    Attributes:
        repo_id: owner/name.
        branch: that it was committed to.
        files: path in the repository -> bytes.
        card: the text of the model card.
        url: the commit's address; None after a dry run.
    """

    repo_id: str
    branch: str
    files: Mapping[str, int]
    card: str
    url: str | None


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    message: str | None = None,
    private: bool = False,
    license: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Upload:
    """Uploads a converted checkpoint to the Hugging Face hub, in one commit.

    It goes up in PyTorch's layout and in JAX's, with a model card; `load_backbone(repo_id)` and `load_backbone_and_probe(repo_id)` load it
    again. Nothing else leaves the machine. An upload that was interrupted is not visible; the same call again does not send again what has
    been sent.

        u3d.push_to_hub("run/probes", "someone/my-probes", private=True, license="cc-by-nc-sa-4.0")

    Args:
        folder: the converted checkpoint, such as `python -m convert` and `python -m train` write.
        repo_id: owner/name; made where there is none.
        revision: the branch, by default main; made where there is none.
        message: of the commit.
        private: whether the repository is to be private.
        license: the hub's word for the licence, such as cc-by-nc-sa-4.0. By default that of the source. It must not be freer than
            that, and must be given where the source's is not known.
        token: by default the client's own: `HF_TOKEN`, else its login (hf auth login).
        overwrite: whether files of these names in the repository may be replaced. Its other files stay.
        dry_run: whether to only make the files and the card, and send nothing.
        progress: whether a terminal shows progress bars.

    Raises:
        CheckpointError: `folder` is not a converted checkpoint, or is damaged.
        OptionError: the licence is not known or too free, or the name or token cannot be one.
        OutputError: the hub refuses it or cannot be reached, or the repository holds other files under these names.
        OSError: the disk is full.
    """
    folder = in_home(folder)
    if not looks_like_hub_id(repo_id):
        raise OptionError(f"{repo_id!r} is no name of a repository; give OWNER/NAME, of letters, digits, - _ and .")
    access = HubAccess(revision=revision, token=token)
    _ = access.secret  # a mistake shows before anything is written
    info = read_checkpoint_info(folder)
    licence = licence_to_publish(info.provenance, license)
    # Whoever has it from there has it under what it was published under.
    published = licence_record([Licence(**{**licence, "found": f"the upload to {repo_id}"})])
    provenance = {part: {**_without_folders(record), **published} for part, record in info.provenance.items()}
    for record in provenance.values():
        record.pop("licences", None)
    card = model_card(info, repo_id, licence)
    with _staging(folder) as place:
        _logger.info("writing what goes up: PyTorch's layout, JAX's, and the card")
        export_checkpoint(folder, place / "files", provenance=provenance)
        write_jax_layout(folder, info, provenance, place / "files" / JAX)
        (place / "files" / CARD).write_text(card, encoding="utf-8")
        files = {name: place / "files" / name for name in sorted(files_in(place / "files"))}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        url = None
        if not dry_run:
            message = message or f"Upload {repo_id.rpartition('/')[2]} in PyTorch's and JAX's layout with {LIBRARY}"
            url = upload(Target(repo_id, access, message, private, overwrite), files, OWN_FILES, progress)
    return Upload(repo_id, revision or MAIN, sizes, card, url)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the checkpoint for what goes up; one that a killed process left is removed first."""
    folder = folder.resolve()
    place = folder.with_name(f".{folder.name}.upload")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        with locked(folder.with_name(f".{folder.name}.upload.lock"), f"the upload of {folder}"):
            shutil.rmtree(place, ignore_errors=True)
            check_free_space(place, 2 * size)
            place.mkdir()
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
    except PermissionError as error:
        raise OutputError(
            f"{folder.parent} cannot be written ({error.strerror}), where the files to upload are made; copy {folder}"
        ) from error


def public_text(value: str) -> str:
    """An option's value without the folders above a path in it, which are private: 0.5*pairs:/home/me/rooms is 0.5*pairs:rooms.

    A path is what begins as one, what stands where a data set's folder does, and what is there: runs/mine reads like a hub id.
    """
    matched = _DATA_SET.fullmatch(value) or _PATH.fullmatch(value)
    if matched is not None:
        return matched[1] + matched[2]
    return Path(value).name if os.path.exists(value) and Path(value).name else value


def _without_folders(value: Any) -> Any:
    """A record with the options of its training as `public_text` has them."""
    if not isinstance(value, Mapping) or "training" not in value:
        return value
    return {**value, "training": _public(value["training"])}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        # Where a run was written means nothing to others, and need not be there any more.
        return {key: Path(item).name if key == "out" and isinstance(item, str) else _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return public_text(value) if isinstance(value, str) else value


def describe(upload: Upload) -> str:
    """What goes up, for a person: the files with their sizes, and the card."""
    from und3rstand_jax.support.text import size_text, text_table

    rows = [(name, size_text(size)) for name, size in upload.files.items()]
    total = ("in all", size_text(sum(upload.files.values())))
    where = f"to {upload.repo_id}, branch {upload.branch}:"
    return f"{where}\n\n{text_table(('file', 'size'), [*rows, total], numbers_from=1)}\n\n{CARD}:\n\n{printable(upload.card, keep=chr(10))}"
