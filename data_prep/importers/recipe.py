"""How a series of an archive becomes examples: sizes, windows, stacks, and labels by lesions."""

from dataclasses import dataclass, field

from data_prep.importers.lesions import LesionRule
from data_prep.importers.resample import Square


@dataclass(frozen=True)
class Depth:
    """Of 3-D patches.

    Attributes:
        planes: D of [C, D, H, W].
        slice_mm: millimetres from one plane to the next; None: as from pixel to pixel.
    """

    planes: int
    slice_mm: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How a series becomes examples.

    Attributes:
        square: of each image.
        window: names of CT windows, one channel each; ("hu",) for Hounsfield units.
        stack: neighbouring slices that become channels; 1: single slices.
        every_mm: the least distance between two slices that are taken.
        max_slices: of one series, evenly spaced; None: all.
        lesion: labels from contours or masks; None: labels come from a table.
        depth: of 3-D patches, in and around lesions, or in a grid over the volume; None: slices.
    """

    square: Square = field(default_factory=lambda: Square(64))
    window: tuple[str, ...] = ("wide",)
    stack: int = 1
    every_mm: float = 0.0
    max_slices: int | None = None
    lesion: LesionRule | None = None
    depth: Depth | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one channel of an example: (H, W), or (D, H, W)."""
        sides = (self.square.size, self.square.size)
        return sides if self.depth is None else (self.depth.planes, *sides)
