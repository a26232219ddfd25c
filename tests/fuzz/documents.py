"""Damage to documents (JSON, lines of JSON, YAML): to the tree of values that they hold, and to the text that holds it."""

import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st


class Raw(str):
    """Text that stands for a value and is written as it is."""


DEEP = 100_000
ODD = tuple(
    Raw(text)
    for text in (
        *("null", "true", "false", "0", "-1", "1", "2", "0.5", "-0.0", "1e-400", "1e308", "1e400", "NaN", "Infinity", "-Infinity"),
        *("2147483648", "-9223372036854775809", "18446744073709551616", "1000000000", "1" + "0" * 5000, "1." + "0" * 5000 + "1"),
        *('""', '" "', '"\\ud800"', '"\\u0000"', '"\\u2028"', '"\u2028\u2029"', '"\u202e\x7f"', '"\\u001b[31merror: fake"', '"a\\nb"'),
        *('"1"', '"nan"', '"inf"', '"1e999"', '"true"', '"."', '".."', '"../../x"', '"/"', '"/dev/zero"', '"~"', '"~nobody/x"', '"*"'),
        *("[]", "{}", "[[]]", "[null]", "[0, 1]", '{"a": 1, "a": 2}', '{"": {}}', '[1, "a", null, {}]'),
        *("[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP, f'"{"x" * 100_000}"', f"[{'0,' * 100_000}0]"),
    )
)
ODD_YAML = tuple(
    Raw(text)
    for text in (
        *("*a", "&a [*a]", "&a {b: 1}", "!!python/object/apply:os.system [exit]", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "~"),
        *("2024-01-01", "2024-13-45", "9999999-01-01 00:00:00", ".nan", "-.inf", "1e-4", "0x_", "0b2", "1:30:20", "190:20:30.15", "1_0"),
        *("{[a]: b}", "{{a: b}: c}", "{? [a, b] : c}", "<<: {a: 1}", "!!int x", "!!float x", "!!timestamp x", "!!bool x", "!x y", "@", "`"),
    )
)

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def to_json(value: Any) -> str:
    """JSON text of a value, pieces of raw text in it as they are."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {to_json(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


@st.composite
def damaged_tree(draw: Callable[..., Any], tree: Any, yaml: bool = False) -> Any:
    """The tree with one to three changes: values replaced, retyped, moved, nested, repeated or removed; keys renamed or added."""
    tree = json.loads(json.dumps(tree))
    odd = st.sampled_from(ODD + ODD_YAML if yaml else ODD) | _values
    for _ in range(draw(st.integers(1, 3))):
        top = {"": tree}
        places = list(_places(top))
        holder, key = draw(st.sampled_from(places))
        held = holder[key]
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                holder[key] = draw(odd)
            case 3:
                other, other_key = draw(st.sampled_from(places))
                holder[key] = json.loads(json.dumps(other[other_key], default=str)) if _is_plain(other[other_key]) else None
            case 4:
                del holder[key]
            case 5:
                if isinstance(held, dict):
                    held[draw(st.text(max_size=10) | st.sampled_from([str(key), "version", "type"]))] = draw(odd)
                elif isinstance(held, list):
                    held.insert(draw(st.integers(0, len(held))), draw(odd))
            case 6:
                holder[key] = draw(st.sampled_from([[held], {"value": held}, [held] * 1000, str(held)[:1000]]))
            case 7:
                if isinstance(held, int | float):
                    holder[key] = draw(st.sampled_from([-held, held + 1, held - 1, held * 1000, held + 0.5, float(held), str(held)]))
                elif isinstance(held, dict | list) and held:
                    holder[key] = next(iter(held.values())) if isinstance(held, dict) else held[0]
            case 8:
                if isinstance(holder, dict) and holder is not top:
                    holder[draw(st.text(max_size=10))] = holder.pop(key)
            case _:
                if isinstance(held, str) and not isinstance(held, Raw):
                    at = draw(st.integers(0, len(held)))
                    letter = draw(st.characters() | st.sampled_from("./-_,:*\n\0\x1b\u2028\u202e"))
                    holder[key] = held[:at] + letter + held[at + draw(st.integers(0, 1)) :]
        tree = top.get("", Raw(""))
    return tree


def _places(holder: Any) -> Any:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _is_plain(value: Any) -> bool:
    """Whether a value holds no raw text, which would be taken for a string."""
    if isinstance(value, dict | list):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, Raw)


def _at(text: str, position: int, inserted: str) -> str:
    return text[:position] + inserted + text[position:]


_TEXT_CHANGES: tuple[Callable[[str, int], bytes], ...] = (
    lambda text, at: b"\xef\xbb\xbf" + _encoded(text),
    lambda text, at: _encoded(_at(text, at, "\u2028")),
    lambda text, at: _encoded(_at(text, at, "\0")),
    lambda text, at: _encoded(text[:at]),
    lambda text, at: _encoded(text) + b"\n" + _encoded(text),
    lambda text, at: _encoded(text).replace(b"\n", b"\r\n"),
    lambda text, at: _encoded(text[:at]) + b"\xff\xfe" + _encoded(text[at:]),
    lambda text, at: text.encode("utf-16", "surrogatepass"),
    lambda text, at: _encoded(_at(text, at, ",")),
    lambda text, at: b" " * 1_000_000 + _encoded(text),
    lambda text, at: b"",
)


@st.composite
def damaged_text(draw: Callable[..., Any], text: str) -> bytes:
    """The text as it is four times of five, otherwise changed where documents go wrong: marks, separators, encodings, ends."""
    if draw(st.integers(0, 4)):
        return _encoded(text)
    return draw(st.sampled_from(_TEXT_CHANGES))(text, draw(st.integers(0, min(len(text), 2000))))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
