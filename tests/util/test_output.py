"""Standard output in an encoding that lacks letters, as of a path."""

import io
import os

from fedhpc.util.output import output_to


def test_output_shows_a_letter_that_it_cannot_encode() -> None:
    """It ended commands with a traceback, or with a message about damaged records."""
    reader, writer = os.pipe()
    with output_to(writer, io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as out:
        out.write("ol\u00e9")
    os.close(writer)
    with open(reader, "rb") as found:
        assert found.read() == b"ol\\xe9"
