"""Which of the endless scenes are for training and which are held out. No JAX here: loader processes import this."""


def training_scenes() -> range:
    """Numbers of the scenes that are trained on, in order."""
    return range(2**30)


def held_out_scenes() -> range:
    """Numbers of the scenes that are validated on."""
    return range(2**30, 2**31 - 1)
