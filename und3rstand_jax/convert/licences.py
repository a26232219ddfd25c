"""The licence of weights: where a source states it, and what may be done under it.

Weights that are converted, exported, trained further or uploaded stay under the licence that they came with, or one at least as strict.
A licence that nobody states is not guessed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import listed


class Licence(TypedDict):
    """A licence as a model card on the hub names it, and where it was found.

    `id` is the hub's identifier, such as cc-by-nc-sa-4.0; a licence without one is "other", with a name and a link.
    """

    id: str
    name: str | None
    link: str | None
    found: str


_OF_NAVER = ("cc-by-nc-sa-4.0", "what the authors of DUSt3R, MASt3R and CroCo publish their weights under")
_BY_NAME = {
    r"naver/(DUSt3R|MASt3R|CroCo)[\w.-]*": _OF_NAVER,
    r"(.*/)?(DUSt3R|MASt3R|CroCo(_V2)?)_ViT(Large|Base)_(Base|Small)Decoder[\w.-]*": _OF_NAVER,
    r"(.*/)?VGGT-1B(?!-Commercial)([._-][\w.-]*)?": ("cc-by-nc-4.0", "what the authors of VGGT-1B publish it under"),
}
"""Pattern of the names of published weights -> their licence, and why. Weights with such a name count as a copy, whoever owns them."""

_PARTS = ("backbone", "probes")  # folders of an export
_WORDS = ("license", "license_name", "license_link")
HEADER = (*_WORDS, "base_model")
"""The keys in the header of a safetensors file that say where its weights come from, named as in a model card on the hub."""
_CREATIVE_COMMONS = re.compile(r"cc-by((?:-nc)?(?:-sa|-nd)?)-\d\.\d")
_ATTRIBUTION_ALONE = ("apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "mit")
_NO_CONDITIONS = ("cc0-1.0", "unlicense", "0bsd")
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def licences_of_source(
    names: Iterable[str],
    *,
    bases: Iterable[str] = (),
    card: Mapping[str, Any] | None = None,
    card_name: str = "",
    header: Mapping[str, str] | None = None,
    header_name: str = "",
) -> tuple[Licence, ...]:
    """The licence of a source, from everything that states one; of several statements, the strictest.

    Empty if nothing states one. If it is unclear which of two is stricter, both are returned: nothing is guessed.

    Args:
        names: its hub id, or the names of the local folder and file.
        bases: the base models that it names, whose weights it may hold.
        card: the header of its model card.
        card_name: what messages call the card.
        header: the strings in the headers of its safetensors files.
        header_name: what messages call these headers.
    """
    held = header or {}
    stated = [_of_card(card or {}, card_name)]
    words = held.get("license", "").split(", ")
    details = {} if len(words) > 1 else {key: held[key] for key in _WORDS if key in held}
    stated += [_of_card({**details, "license": word}, header_name) for word in words]
    stated += [licence_of_name(name) for name in (*names, *bases, *held.get("base_model", "").split(", "))]
    return _decided(stated)


def header_of(licences: Iterable[Licence]) -> dict[str, str]:
    """Licences as strings in the header of a safetensors file, where `licences_of_source` finds them again."""
    licences = list(licences)
    if len(licences) != 1:
        return {"license": ", ".join(licence["id"] for licence in licences)} if licences else {}
    fields = zip(_WORDS, (licences[0]["id"], licences[0]["name"], licences[0]["link"]), strict=True)
    return {key: value for key, value in fields if value is not None}


def licence_of_name(name: str) -> Licence | None:
    """The licence of published weights, recognised by their name; None for any other name."""
    parts = re.sub(r"\.(safetensors|pth|pt|ckpt|bin)$", "", name.rstrip("/")).split("/")
    if parts[-1] in _PARTS:
        parts.pop()
    for pattern, (licence, why) in _BY_NAME.items():
        if re.fullmatch(pattern, "/".join(parts), re.IGNORECASE | re.DOTALL):
            return Licence(id=licence, name=None, link=None, found=f"{why} ({parts[-1]})")
    return None


def _of_card(card: Mapping[str, Any], card_name: str) -> Licence | None:
    stated = card.get("license")
    if not isinstance(stated, str) or not _ID.fullmatch(stated.lower()):
        return None  # nothing, a list, or a sentence: not a licence that could be passed on by its identifier
    details = [value if isinstance(value := card.get(field), str) else None for field in ("license_name", "license_link")]
    return Licence(id=stated.lower(), name=details[0], link=details[1], found=card_name)


def _decided(stated: Iterable[Licence | None]) -> tuple[Licence, ...]:
    """The licences stated for the same weights, without those that add nothing to the rest; of equal ones, the first."""
    kept: list[Licence] = []
    for licence in stated:
        if licence is not None and not any(_demands_all_of(other, licence) for other in kept):
            kept = [other for other in kept if not _demands_all_of(licence, other)] + [licence]
    return tuple(kept)


def _demands_all_of(licence: Licence, other: Licence) -> bool:
    ours, theirs = _conditions(licence["id"]), _conditions(other["id"])
    same = (licence["id"], licence["name"], licence["link"]) == (other["id"], other["name"], other["link"])
    return same or (ours is not None and theirs is not None and theirs <= ours)


def strictest(licences: Iterable[Licence]) -> Licence:
    """The licence that is at least as strict as each of the others: the one under which all of it together may be published.

    Raises:
        OptionError: there is none, for example if two licences both demand to be kept.
    """
    licences = list(licences)
    for licence in licences:
        if all(licence is other or restricts_no_less(licence, other) for other in licences):
            return licence
    named = listed(f"{licence['id']} ({licence['found']})" for licence in licences)
    raise OptionError(
        f"the weights are under licences that cannot be combined: {named}; publish parts with different licences separately; if one source "
        "states both, find out which it is, correct a copy of its model card, and convert that"
    )


def stated_licence(text: str, where: str) -> Licence:
    """The licence that somebody states by the hub's identifier.

    Raises:
        OptionError: it is not such an identifier.
    """
    if not _ID.fullmatch(text) or text == "other":
        raise OptionError(f"{where} {text!r} is not the hub's ID for a licence; expected one such as apache-2.0, mit or cc-by-nc-sa-4.0")
    return Licence(id=text, name=None, link=None, found=where)


def restricts_no_less(licence: Licence, other: Licence) -> bool:
    """Whether what is under `other` may be passed on under `licence` without becoming freer.

    A licence whose conditions are not known here only replaces itself. An "other" without a name and a link may be any licence.
    """
    if licence["id"] != "other" and licence["id"] == other["id"]:
        return True
    if licence["id"] == other["id"] and (licence["name"] or licence["link"]):
        return (licence["name"], licence["link"]) == (other["name"], other["link"])
    ours, theirs = _conditions(licence["id"]), _conditions(other["id"])
    if ours is None or theirs is None or theirs & {"sa", "nd"}:  # share alike: under the same; no derivatives: as it is
        return False
    return theirs <= ours


def _conditions(licence: str) -> frozenset[str] | None:
    """Which of attribution, non-commercial use, share-alike and no derivatives a licence demands; None if that is not known here."""
    if licence in _NO_CONDITIONS:
        return frozenset()
    if licence in _ATTRIBUTION_ALONE:
        return frozenset({"by"})
    matched = _CREATIVE_COMMONS.fullmatch(licence)
    return None if matched is None else frozenset({"by", *filter(None, matched[1].split("-"))})


def licence_record(licences: Sequence[Licence]) -> dict[str, Any]:
    """Licences of the same weights as recorded in a provenance: one, none, or several if none of them is the strictest."""
    return {"licence": licences[0] if len(licences) == 1 else None, **({"licences": list(licences)} if len(licences) > 1 else {})}


def known_licences(provenance: Mapping[str, Mapping[str, Any]]) -> tuple[list[Licence], list[str]]:
    """The licences that the parts of a converted checkpoint came with, and the parts without a known licence, for a message.

    Probes that were trained here add nothing to their backbone's licence. A backbone that was trained here from a checkpoint keeps that
    checkpoint's licence; one trained from random parameters is its author's to license.
    """
    known, unknown = list[Licence](), list[str]()
    for part, record in provenance.items():
        if record["kind"] == "training" and part == "probes" and "backbone" in provenance:
            continue
        origin = _origin(record)
        licences = () if origin is None else _decided([*_recorded(origin), licence_of_name(origin["source"])])
        known += [licence for licence in licences if licence not in known]
        if origin is None:
            unknown.append(f"the {part}, which was trained from random parameters")
        elif not licences:
            unknown.append(f"the {part}, which came from {origin['source']}, whose model card and name state none")
    return known, unknown


def _origin(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The origin of weights; for weights trained here, what their first training started from, None for random parameters."""
    origin: Mapping[str, Any] | None = record
    while origin is not None and origin["kind"] == "training" and not _recorded(origin):
        origin = origin.get("start")
    return origin


def _recorded(record: Mapping[str, Any]) -> list[Licence]:
    return record.get("licences") or ([record["licence"]] if record.get("licence") else [])


def licence_to_publish(provenance: Mapping[str, Mapping[str, Any]], given: str | None) -> Licence:
    """The licence under which a converted checkpoint may be published.

    Args:
        provenance: the provenance of its parts.
        given: the hub's identifier of the licence that the caller states.

    Raises:
        OptionError: it would be freer than the licence of a part, or a part's licence is not known and none is given.
    """
    known, unknown = known_licences(provenance)
    joined = strictest(known) if known else None
    if given is None:
        if joined is None or unknown:
            raise OptionError(
                f"no licence is known for {listed(unknown, '; for ')}; it is not guessed: state the one you may publish under "
                "(--license ID, as the hub names it, such as cc-by-nc-sa-4.0 or apache-2.0)"
            )
        return joined
    stated = stated_licence(given, "--license")
    for licence in known:
        if not restricts_no_less(stated, licence):
            raise OptionError(
                f"--license {given} may not take the place of {licence['id']} ({licence['found']}): what is made from such weights must "
                f"not become freer; leave --license out{'' if licence['id'] == 'other' else ', or give ' + licence['id']}"
            )
    return next((licence for licence in known if licence["id"] == given), stated)
