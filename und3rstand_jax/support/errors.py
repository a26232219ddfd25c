"""Errors whose messages are written for the person who supplied the input.

A message says what was expected, what was found and what to do. The commands print it as one line on stderr and exit with status 2;
from Python, the error is simply raised. Any other exception is a bug.

    try:
        backbone = u3d.load_backbone(source)
    except (u3d.CheckpointError, u3d.ConfigError) as error:
        print(f"skipping {source}: {error}")
"""

from und3rstand_jax.support.text import printable

_LONGEST = 4000  # characters of a line


class UserError(ValueError):
    """Something that the caller supplied cannot be used; the base class of all errors below.

    The message is one line. Unprintable characters from untrusted names or files are escaped, and secrets are left out (see `printable`).
    If several things are wrong, `lines` has one line for each.
    """

    def __init__(self, message: str, *lines: str) -> None:
        super().__init__(message, *lines)

    def __str__(self) -> str:
        return "\n".join(_bounded(printable(line)) for line in self.args)


def _bounded(line: str) -> str:
    """A line cut to `_LONGEST` characters in its middle: what was wrong with a giant input and what to do stay readable."""
    if len(line) <= _LONGEST:
        return line
    end = _LONGEST // 4
    return f"{line[: _LONGEST - end - 1]}…{line[-end:]}"


class CheckpointError(UserError):
    """A checkpoint, or a source to convert, cannot be found or read, is damaged, or lacks what is needed."""


class ConfigError(UserError):
    """The architecture of a backbone or of probes cannot be built."""


class LayerError(UserError):
    """A layer id, pattern, site or head that the model does not have, or a layer that is needed but was not captured."""


class EditError(UserError):
    """An edit cannot be made: its site does not have the places that it names, or its numbers do not fit there."""


class ImageError(UserError):
    """A photo cannot be read, or an array is not a batch of images."""


class DataError(UserError):
    """A data set, or the file that describes one, cannot be read or is inconsistent."""


class OptionError(UserError):
    """An option or argument is outside its range, or contradicts another one."""


class OutputError(UserError):
    """Results may not be written to the requested place."""


class TrainingError(UserError):
    """Training diverged: no loss is finite any more."""
