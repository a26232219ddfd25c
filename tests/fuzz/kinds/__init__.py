"""All kinds of input, by name. Whatever the project reads is imported when it is called: the main process needs none of it."""

from tests.fuzz.contract import Kind
from tests.fuzz.kinds import checkpoints, data, names, options, photos, results, sources, training

KINDS: dict[str, Kind] = {
    kind.name: kind
    for module in (checkpoints, sources, names, data, photos, results, training, options)
    for kind in module.KINDS  # a chapter's own
}
