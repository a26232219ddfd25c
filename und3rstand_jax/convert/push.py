"""Uploads a converted checkpoint to the Hugging Face hub: in PyTorch's layout, in JAX's beside it, and with a model card.

README.md                                    the card
model.safetensors, config.json               what `--to-torch` exports; for parts from different sources in `backbone/` and `probes/`
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
"""Every file that an upload may contain, except for the card: those left over from an earlier upload are removed by the next one."""

_PATH = re.compile(r"((?:[^*:/]+\*)?(?:\w+:)?)(?:/|~|\.\.?/).*?([^/]+)/*", re.DOTALL)
_DATA_SET = re.compile(rf"((?:[^*:]+\*)?\s*(?:{'|'.join(KINDS)})\s*:).*?([^/]+)/*", re.DOTALL)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """What was uploaded, or would be.

    Attributes:
        repo_id: owner/name.
        branch: the branch of the commit.
        files: path in the repository -> size in bytes.
        card: the text of the model card.
        url: the commit's URL; None after a dry run.
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

    It is uploaded in PyTorch's layout and in JAX's, with a model card; `load_backbone(repo_id)` and `load_backbone_and_probe(repo_id)`
    load it. Nothing else leaves the machine. An interrupted upload is not visible; repeating the call does not send again what has been
    sent.

        u3d.push_to_hub("run/probes", "someone/my-probes", private=True, license="cc-by-nc-sa-4.0")

    Args:
        folder: the converted checkpoint, as written by `python -m convert` and `python -m train`.
        repo_id: owner/name; created if it does not exist.
        revision: the branch, by default main; created if it does not exist.
        message: the commit message.
        private: whether the repository must be private.
        license: the hub's identifier of the licence, such as cc-by-nc-sa-4.0; by default the source's licence. It must not be freer than
            the source's, and must be given if that is not known.
        token: access token, by default the client's own: `HF_TOKEN`, else its login (hf auth login).
        overwrite: whether files with these names in the repository may be replaced. Its other files stay.
        dry_run: whether to only create the files and the card, and send nothing.
        progress: whether a terminal shows progress bars.

    Raises:
        CheckpointError: `folder` is not a converted checkpoint, or is damaged.
        OptionError: the licence is not known or too free, or the name or token is malformed.
        OutputError: the hub refuses the upload or cannot be reached, or the repository holds other files under these names.
        OSError: the disk is full.
    """
    folder = in_home(folder)
    if not looks_like_hub_id(repo_id):
        raise OptionError(f"{repo_id!r} is not a repository name; give OWNER/NAME, of letters, digits, - _ and .")
    access = HubAccess(revision=revision, token=token)
    _ = access.secret  # a mistake is reported before anything is written
    info = read_checkpoint_info(folder)
    licence = licence_to_publish(info.provenance, license)
    # Whoever gets it from there has it under the licence it was published under.
    published = licence_record([Licence(**{**licence, "found": f"the upload to {repo_id}"})])
    provenance = {part: {**_without_folders(record), **published} for part, record in info.provenance.items()}
    for record in provenance.values():
        record.pop("licences", None)
    card = model_card(info, repo_id, licence)
    with _staging(folder) as place:
        _logger.info("writing the files to upload: PyTorch's layout, JAX's, and the card")
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
    """A hidden folder beside the checkpoint for the files to upload; one that a killed process left is removed first."""
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
            f"{folder.parent}, where the files to upload are created, cannot be written ({error.strerror}); copy {folder} elsewhere"
        ) from error


def public_text(value: str) -> str:
    """An option's value without the folders above a path in it, which are private: 0.5*pairs:/home/me/rooms is 0.5*pairs:rooms.

    A value counts as a path if it begins like one, stands in the place of a data set's folder, or exists: runs/mine reads like a hub id.
    """
    matched = _DATA_SET.fullmatch(value) or _PATH.fullmatch(value)
    if matched is not None:
        return matched[1] + matched[2]
    return Path(value).name if os.path.exists(value) and Path(value).name else value


def _without_folders(value: Any) -> Any:
    """A record whose training options have been passed through `public_text`."""
    if not isinstance(value, Mapping) or "training" not in value:
        return value
    return {**value, "training": _public(value["training"])}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        # The place of a run means nothing to others, and may no longer exist.
        return {key: Path(item).name if key == "out" and isinstance(item, str) else _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return public_text(value) if isinstance(value, str) else value


def describe(upload: Upload) -> str:
    """What is uploaded, as readable text: the files with their sizes, and the card."""
    from und3rstand_jax.support.text import size_text, text_table

    rows = [(name, size_text(size)) for name, size in upload.files.items()]
    total = ("in all", size_text(sum(upload.files.values())))
    where = f"to {upload.repo_id}, branch {upload.branch}:"
    return f"{where}\n\n{text_table(('file', 'size'), [*rows, total], numbers_from=1)}\n\n{CARD}:\n\n{printable(upload.card, keep=chr(10))}"
