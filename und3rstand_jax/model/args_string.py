"""The `args.model` string of a `.pth` file: the Python call that made the model, parsed and never evaluated."""

import ast
import math
from typing import Any

from und3rstand_jax.support.documents import checked
from und3rstand_jax.support.errors import ConfigError

_LONGEST = 20_000  # characters; DUSt3R's has 400


def parse_args_string(call: str) -> tuple[str, dict[str, object]]:
    """Class name and keyword arguments of a model call written as a string, without evaluating it.

    Raises:
        ConfigError: the string is not a call whose arguments are keywords with literal values, such as JSON has.
    """
    if len(call) > _LONGEST:
        raise ConfigError(f"the checkpoint's args.model has {len(call):,} characters, expected a Python call of {_LONGEST:,} at most")
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the checkpoint's args.model is not a Python call: {call[:80]!r} ({type(error).__name__})") from None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ConfigError(f"the checkpoint's args.model must read Name(option=literal, …); found {call[:80]!r}")
    options: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigError("the checkpoint's args.model unpacks a mapping (**…); only option=literal is accepted")
        if keyword.arg in options:
            raise ConfigError(f"the checkpoint's args.model gives {keyword.arg[:80]} twice")
        try:
            options[keyword.arg] = _literal(keyword.value, keyword.arg)
        except RecursionError:
            message = f"the checkpoint's args.model gives {keyword.arg[:80]} as code nested too deeply; nothing was evaluated"
            raise ConfigError(message) from None
    # Bytes, complex numbers and integers of thousands of digits are literals too.
    checked(options, "the checkpoint's args.model", dict[str, Any], ConfigError)
    return node.func.id, options


def _literal(node: ast.expr, option: str) -> object:
    """A literal's value; unlike `ast.literal_eval`, this accepts the bare name `inf` that DUSt3R writes."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, option)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(item, option) for item in node.elts)
    raise ConfigError(
        f"the checkpoint's args.model gives {option[:80]} as code, not as a literal: {ast.unparse(node)[:80]!r}; nothing was evaluated"
    )
