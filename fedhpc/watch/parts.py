"""What is drawn of numbers in one line: a bar of progress, a sparkline. Plain text, with ASCII where it must be."""

from collections.abc import Sequence

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


def progress_bar(done: int, total: int, width: int = 24) -> str:
    """Return a bar of `width` characters, full when all is done.

    >>> progress_bar(1, 4, 8), progress_bar(0, 0, 4), progress_bar(97, 98, 4)
    ('[##------]', '[----]', '[###-]')
    """
    full = width * min(done, total) // total if total else 0
    return f"[{'#' * full}{'-' * (width - full)}]"


def sparkline(values: Sequence[float], width: int = 40, blocks: str = BLOCKS) -> str:
    """Return values as a line of at most `width` blocks, from the least to the largest of them.

    Of more values than fit, each block is the last of its share.

    >>> sparkline([0.5, 0.75, 1.0], blocks=ASCII_BLOCKS), sparkline([0.5, 0.5], blocks=ASCII_BLOCKS), sparkline([])
    ('_=#', '##', '')
    """
    if not values:
        return ""
    n = min(width, len(values))
    shown = [values[(k + 1) * len(values) // n - 1] for k in range(n)]
    low, span = min(shown), max(shown) - min(shown)
    if not span:
        return blocks[-1] * n
    return "".join(blocks[int((value - low) / span * (len(blocks) - 1))] for value in shown)


def ago(seconds: float) -> str:
    """Return how long ago something was, roughly.

    >>> ago(4), ago(125), ago(7300)
    ('4 s ago', '2 min ago', '2 h ago')
    """
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 3600 else f"{seconds / 3600:.0f} h ago"
