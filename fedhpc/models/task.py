"""What a network is built for."""

from dataclasses import dataclass

from fedhpc.config.model import TaskKind


@dataclass(frozen=True)
class Task:
    """What the images and labels of all sites have in common (public).

    Attributes:
        classes: the names of the classes; a network gives one logit for each.
        image_shape: (channels, height, width) of slices, (channels, depth, height, width) of 3-D patches.
        kind: `multiclass`: an image is of one class; `multilabel`: each class is a finding, there or not.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    kind: TaskKind = "multiclass"

    @property
    def dims(self) -> int:
        """2 of slices, 3 of patches.

        >>> Task(("no", "yes"), (1, 8, 16, 16)).dims
        3
        """
        return len(self.image_shape) - 1

    @property
    def measured(self) -> tuple[str, ...]:
        """The classes that a score tells from all others: each; of two exclusive ones the second alone.

        >>> Task(("no", "yes"), (1, 8, 8)).measured, Task(("a", "b"), (1, 8, 8), "multilabel").measured
        (('yes',), ('a', 'b'))
        """
        return self.classes[1:] if self.kind == "multiclass" and len(self.classes) == 2 else self.classes
