"""The errors whose message is written for the person who gave the input.

A message says what was expected, what was found and what to do. The command lines print it as one line on stderr and exit with
status 2; from Python it is raised as it is. Every other exception is a bug.

    try:
        backbone = u3d.load_backbone(source)
    except u3d.CheckpointError as error:
        print(f"skipping {source}: {error}")
"""


class UserError(ValueError):
    """Something the caller gave cannot be used. Every error below is one."""


class CheckpointError(UserError):
    """A checkpoint, or a source to convert, cannot be found or read, is damaged, or does not hold what is needed."""


class ConfigError(UserError):
    """An architecture, of a backbone or of probes, that no model has."""


class LayerError(UserError):
    """A layer id, pattern, attention map or head that the model does not have."""


class ImageError(UserError):
    """A photo that cannot be read, or an array that is not a batch of images."""


class DataError(UserError):
    """A data set, or the file that describes one, cannot be read or is inconsistent."""


class OptionError(UserError):
    """An option or argument outside its range, or at odds with another one."""


class OutputError(UserError):
    """Results may not be written where they were asked to go."""
