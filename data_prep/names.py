"""File names as they are on disk and as they are shown: any bytes are legal in a name, not all of them in a message."""

import os
import unicodedata
from pathlib import PurePath

MOST_LETTERS = 100
"""Of the name of a class."""


def shown(path: PurePath | str) -> str:
    r"""Return `path` as printable text: bytes that are not UTF-8 and control characters become escapes.

    >>> shown("M\udcfcller\n.png")
    'M\\xfcller\\x0a.png'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def is_class_name(name: str) -> bool:
    r"""Return whether a name may be that of a class: it is printed, and written into shards and reports.

    >>> is_class_name("M\u00fcller's tumour"), is_class_name("a\x1b[31m"), is_class_name("M\udcfcller")
    (True, False, False)
    """
    return name.isprintable() and 0 < len(name) <= MOST_LETTERS


def patient_key(name: str) -> str:
    r"""Return what the spellings of one patient's id have in common: letters in lower case and of one width, no blanks.

    A patient who counts as two has half the privacy. So what may be one person counts as one.

    >>> patient_key(" Ab\u00a0 12 ") == patient_key("AB12") == patient_key("\uff21\uff2212")
    True
    """
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def lookup_key(name: str) -> str:
    r"""Return what two spellings of one file name have in common: Unicode's composed form, slashes forward.

    macOS stores an umlaut as two characters, a table exported on Windows has one.

    >>> lookup_key("no\\Mu\u0308ller.png") == lookup_key("no/M\u00fcller.png")
    True
    """
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))
