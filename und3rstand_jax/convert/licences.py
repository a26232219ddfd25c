"""The licence of weights: where a source says it, and what may be made of it.

Weights that are converted, exported, trained further or uploaded stay under the licence that they came with, or one that restricts no
less. A licence that nobody states is not guessed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import TypedDict

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import listed


class Licence(TypedDict):
    """A licence as a model card on the hub names it, and where it was found.

    `id` is the hub's word for it, such as cc-by-nc-sa-4.0; a licence that the hub has no word for is "other", with a name and a link.
    """

    id: str
    name: str | None
    link: str | None
    found: str


_OF_NAVER = ("cc-by-nc-sa-4.0", "what the authors of DUSt3R, MASt3R and CroCo publish their weights under")
_BY_NAME = {
    r"naver/(DUSt3R|MASt3R|CroCo)[\w.-]*": _OF_NAVER,
    r"(DUSt3R|MASt3R|CroCo(_V2)?)_ViT(Large|Base)_(Base|Small)Decoder[\w.-]*": _OF_NAVER,
    r"(facebook/)?VGGT-1B": ("cc-by-nc-4.0", "what the authors of VGGT-1B publish it under"),
}
"""Pattern of the names of published weights -> their licence, and why. A file or folder of such a name counts as a copy of them."""

_CREATIVE_COMMONS = re.compile(r"cc-by((?:-nc)?(?:-sa|-nd)?)-\d\.\d")
_ATTRIBUTION_ALONE = ("apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "mit")
_NO_CONDITIONS = ("cc0-1.0", "unlicense", "0bsd")
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def licence_of_source(name: str, card: Mapping[str, Any], card_name: str) -> Licence | None:
    """The licence of a source, None where neither its model card nor its name says it; where both do, the one that restricts more.

    Where neither of two restricts more, it is the card's, which its publisher wrote.

    Args:
        name: hub id, or the name of a local folder or file.
        card: the header of its model card; empty without one.
        card_name: what messages call the card.
    """
    stated, known = _of_card(card, card_name), licence_of_name(name)
    if stated is None or known is None:
        return stated or known
    return known if restricts_no_less(known, stated) else stated


def licence_of_name(name: str) -> Licence | None:
    """The licence of published weights, known by their name; None of any other name."""
    bare = re.sub(r"\.(safetensors|pth|pt|ckpt|bin)$", "", name)
    for pattern, (licence, why) in _BY_NAME.items():
        if re.fullmatch(pattern, bare, re.IGNORECASE):
            return Licence(id=licence, name=None, link=None, found=f"{why} ({name})")
    return None


def _of_card(card: Mapping[str, Any], card_name: str) -> Licence | None:
    stated = card.get("license")
    if not isinstance(stated, str) or not _ID.fullmatch(stated.lower()):
        return None  # nothing, a list, or a sentence: not a licence that could be passed on by its word
    details = [value if isinstance(value := card.get(field), str) else None for field in ("license_name", "license_link")]
    return Licence(id=stated.lower(), name=details[0], link=details[1], found=card_name)


def strictest(licences: Iterable[Licence]) -> Licence:
    """The one of several licences that restricts no less than each of the others: what all of it together may be published under.

    Raises:
        OptionError: there is none, as of two licences that both demand to be kept.
    """
    licences = list(licences)
    for licence in licences:
        if all(restricts_no_less(licence, other) for other in licences):
            return licence
    named = listed(f"{licence['id']} ({licence['found']})" for licence in licences)
    raise OptionError(f"the weights are under licences that cannot be joined: {named}; publish the parts separately")


def stated_licence(text: str, where: str) -> Licence:
    """The licence that somebody states by the hub's word for it.

    Raises:
        OptionError: it is not such a word.
    """
    if not _ID.fullmatch(text) or text == "other":
        raise OptionError(f"{where} {text!r} is not the hub's word for a licence; expected one such as apache-2.0, mit or cc-by-nc-sa-4.0")
    return Licence(id=text, name=None, link=None, found=where)


def restricts_no_less(licence: Licence, other: Licence) -> bool:
    """Whether what is under `other` may be passed on under `licence` without becoming freer.

    Of licences whose conditions are not known here, only the same one does.
    """
    if [licence[field] for field in ("id", "name")] == [other[field] for field in ("id", "name")]:
        return True
    ours, theirs = _conditions(licence["id"]), _conditions(other["id"])
    if ours is None or theirs is None or theirs & {"sa", "nd"}:  # share alike: under the same; no derivatives: as it is
        return False
    return theirs <= ours


def _conditions(licence: str) -> frozenset[str] | None:
    """What a licence demands, of attribution, non-commercial use, share alike and no derivatives; None if that is not known here."""
    if licence in _NO_CONDITIONS:
        return frozenset()
    if licence in _ATTRIBUTION_ALONE:
        return frozenset({"by"})
    matched = _CREATIVE_COMMONS.fullmatch(licence)
    return None if matched is None else frozenset({"by", *filter(None, matched[1].split("-"))})


def known_licences(provenance: Mapping[str, Mapping[str, Any]]) -> tuple[list[Licence], list[str]]:
    """The licences that the parts of a converted checkpoint came with, and what has none that is known, for a message.

    Probes that were trained here add nothing to their backbone's. A backbone that was trained here from a checkpoint is under that
    checkpoint's; one from random parameters is its author's to license.
    """
    known, unknown = list[Licence](), list[str]()
    for part, record in provenance.items():
        if record["kind"] == "training":
            if part == "probes" and "backbone" in provenance:
                continue
            origin = record.get("start")
        else:
            origin = record
        licence = None if origin is None else origin.get("licence") or licence_of_name(origin["source"])
        if licence is not None:
            known.append(licence)
        elif origin is None:
            unknown.append(f"the {part}, which was trained from random parameters")
        else:
            unknown.append(f"the {part}, which came from {origin['source']}, whose model card and name state none")
    return known, unknown


def licence_to_publish(provenance: Mapping[str, Mapping[str, Any]], given: str | None) -> Licence:
    """What a converted checkpoint may be published under.

    Args:
        provenance: of its parts.
        given: the licence that the caller states, by the hub's word for it.

    Raises:
        OptionError: it would be freer than what a part came with, or a part's licence is not known and none is given.
    """
    known, unknown = known_licences(provenance)
    if given is None:
        if unknown:
            raise OptionError(
                f"the licence is not known of {listed(unknown, '; of ')}; it is not guessed: state what you may publish it under "
                "(--license ID, the hub's word for it, such as cc-by-nc-sa-4.0 or apache-2.0)"
            )
        return strictest(known)
    stated = stated_licence(given, "--license")
    for licence in known:
        if not restricts_no_less(stated, licence):
            raise OptionError(
                f"--license {given} may not take the place of {licence['id']} ({licence['found']}): what is made from such weights must "
                f"not become freer; leave --license out, or give {licence['id']}"
            )
    return next((licence for licence in known if licence["id"] == given), stated)
