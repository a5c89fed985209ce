"""The array types of the project, each by its dtype."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
Array = NDArray[np.generic]
Images = NDArray[Any]
"""Of any numeric dtype: a shard stores uint8, uint16 or float32."""


def middle_slice(image: Images) -> Images:
    """Return the first channel of an image [C, H, W], and of a 3-D patch [C, D, H, W] its middle plane, as [H, W].

    >>> middle_slice(np.arange(12).reshape(1, 3, 2, 2)).tolist()
    [[4, 5], [6, 7]]
    """
    plane: Images = image[0]
    return plane[len(plane) // 2] if plane.ndim == 3 else plane
