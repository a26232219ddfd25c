"""Reading JSON as strictly as other programs do."""

import json
from typing import Any


def one_document(text: str) -> Any:
    """The JSON document that a text is, and nothing beside it: NaN and infinities are no JSON, and a key stands once."""

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(pairs) == len(dict(pairs)), "a key stands twice"
        return dict(pairs)

    assert text.isascii() and text.endswith("\n")
    return json.loads(text, parse_constant=refused, object_pairs_hook=once)
