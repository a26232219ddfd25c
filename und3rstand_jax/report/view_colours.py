"""A colour for each view, the same in all figures and everywhere on the page.

The first two are the page's blue and orange. The eight colours differ from one another and from the green of the ground truth by at least
20 units of CIELAB, even to eyes without the cones for long or for middle wavelengths. They were found by a search within a range of hue
and lightness for each. There is hardly a ninth such colour: the next eight have the same hues, paler (on a dark background darker), and
so on.
"""

from typing import NamedTuple


class ViewColour(NamedTuple):
    """Hexadecimal, for a light and for a dark background."""

    light: str
    dark: str


_COLOURS = (
    ViewColour("#1f6fb2", "#62aeee"),  # blue
    ViewColour("#cf6412", "#f2994f"),  # orange
    ViewColour("#5b2a9d", "#8548a8"),  # purple
    ViewColour("#1fb4d6", "#c8f8e7"),  # cyan
    ViewColour("#d4b82c", "#f5d433"),  # yellow
    ViewColour("#532615", "#875c45"),  # brown
    ViewColour("#b5789d", "#c6a3bf"),  # mauve
    ViewColour("#181f4c", "#4c81f5"),  # navy
)
_KEPT = 0.6  # share of a colour's difference from the background that remains from one set of eight to the next


def view_colour(view: int) -> ViewColour:
    """The colour of a view, counted from 1."""
    round_, place = divmod(view - 1, len(_COLOURS))
    light, dark = _COLOURS[place]
    return ViewColour(_towards(light, 255, _KEPT**round_), _towards(dark, 0, _KEPT**round_))


def view_style(views: int) -> str:
    """The page's style sheet for `views` views: the colour of each, for its own elements and as a variable for the scripts."""
    colours = [view_colour(view) for view in range(1, views + 1)]

    def variables(of: list[str]) -> str:
        return " ".join(f"--view{view}: {colour};" for view, colour in enumerate(of, start=1))

    own = "\n".join(f".view{view}, .of-view{view} {{ --own: var(--view{view}); }}" for view in range(1, views + 1))
    return (
        f":root {{ {variables([colour.light for colour in colours])} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables([colour.dark for colour in colours])} }} }}\n{own}\n"
    )


def _towards(colour: str, background: int, share: float) -> str:
    """A colour with the opacity `share` over a grey background, 0 to 255."""
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(background + share * (channel - background)):02x}" for channel in channels)
