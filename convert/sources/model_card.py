"""What stands beside the tensors: `config.json`, and the base model that it or the model card names."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.sources.layout import TENSOR_SUFFIXES
from convert.sources.tensor_files import reading
from und3rstand_jax.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_BASE_FIELDS = ("base_model", "backbone")
"""Beginnings of the config fields that may name the base model (`backbone_repo`, `base_model_name_or_path`, …)."""


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` reads owner/name and not like the path of a tensor file."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(TENSOR_SUFFIXES)


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`, which may hold bare `Infinity` and `-Infinity` as DUSt3R's do.

    Raises:
        UserError: it cannot be read, is not JSON, or not an object.
    """
    try:
        with reading(path):
            config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); correct it or download it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object with the model's options; found {type(config).__name__}")
    return config


def base_model(config: Mapping[str, Any] | None, card: Path | None) -> str | None:
    """Hub id or path of the model that a probe checkpoint belongs to, from its config, else from its model card."""
    for field in _BASE_FIELDS:
        for key, value in (config or {}).items():
            if key.startswith(field) and (named := _first_source(value)):
                return named
    return _first_source(_card_metadata(card).get("base_model")) if card else None


def _first_source(value: Any) -> str | None:
    """The first of a string or of a list of strings that reads like a hub id or a path; a plain word does not."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (
            looks_like_hub_id(text) or text.endswith(TENSOR_SUFFIXES) or text.startswith(("/", "./", "../", "~"))
        ):
            return text
    return None


def _card_metadata(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        with reading(card):
            return metadata_load(card) or {}
    except (ValueError, YAMLError) as error:
        # The card is prose for readers; a slip in its header must not stop a conversion that may not need it.
        logging.getLogger(__name__).warning("no base model read from %s: its YAML header is not valid (%s)", card, error)
        return {}
