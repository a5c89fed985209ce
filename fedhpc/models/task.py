"""What a network is built for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What the images and labels of all sites have in common (public).

    Attributes:
        classes: the names of the classes; a network gives one logit for each.
        image_shape: (channels, height, width).
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
