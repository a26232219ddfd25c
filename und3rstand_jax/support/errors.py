"""The errors whose message is written for the person who gave the input.

A message says what was expected, what was found and what to do. The command lines print it as one line on stderr and exit with
status 2; from Python it is raised as it is. Any other exception is a bug.

    try:
        backbone = u3d.load_backbone(source)
    except (u3d.CheckpointError, u3d.ConfigError) as error:
        print(f"skipping {source}: {error}")
"""

from und3rstand_jax.support.text import printable

_LONGEST = 4000  # characters of a line


class UserError(ValueError):
    """Something that the caller gave cannot be used; the base of all errors below.

    The message is one line, with whatever a stranger's name or file put into it escaped and secrets left out (see `printable`). Where
    several things are wrong, `lines` has one line for each.
    """

    def __init__(self, message: str, *lines: str) -> None:
        super().__init__(message, *lines)

    def __str__(self) -> str:
        return "\n".join(_bounded(printable(line)) for line in self.args)


def _bounded(line: str) -> str:
    """A line of at most `_LONGEST` characters: what was wrong with a giant input stays readable, and so does what to do."""
    if len(line) <= _LONGEST:
        return line
    end = _LONGEST // 4
    return f"{line[: _LONGEST - end - 1]}…{line[-end:]}"


class CheckpointError(UserError):
    """A checkpoint, or a source to convert, cannot be found or read, is damaged, or does not hold what is needed."""


class ConfigError(UserError):
    """The architecture of a backbone or of probes is not one that can be built."""


class LayerError(UserError):
    """A layer id, pattern, site or head that the model does not have, or a layer that is needed and was not captured."""


class EditError(UserError):
    """An edit that cannot be made: of places that its site does not have, or with numbers that do not fit there."""


class ImageError(UserError):
    """A photo cannot be read, or an array is not a batch of images."""


class DataError(UserError):
    """A data set, or the file that describes one, cannot be read or is inconsistent."""


class OptionError(UserError):
    """An option or argument is outside its range, or contradicts another one."""


class OutputError(UserError):
    """Results may not be written where they were asked to go."""


class TrainingError(UserError):
    """Training diverged: not one loss is finite any more."""
