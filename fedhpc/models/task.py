"""What a network is built for."""

from dataclasses import dataclass

from fedhpc.config.model import TaskKind


@dataclass(frozen=True)
class Task:
    """What the images and labels of all sites have in common (public).

    Attributes:
        classes: the names of the classes; a network gives one logit for each.
        image_shape: (channels, height, width).
        kind: `multiclass`: an image is of one class; `multilabel`: each class is a finding, there or not.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    kind: TaskKind = "multiclass"

    @property
    def measured(self) -> tuple[str, ...]:
        """The classes that a score tells from all others: each; of two exclusive ones the second alone.

        >>> Task(("no", "yes"), (1, 8, 8)).measured, Task(("a", "b"), (1, 8, 8), "multilabel").measured
        (('yes',), ('a', 'b'))
        """
        return self.classes[1:] if self.kind == "multiclass" and len(self.classes) == 2 else self.classes
