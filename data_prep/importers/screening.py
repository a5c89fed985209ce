"""Images that may show who the patient is: refused by their headers, or blanked by the rules of their device.

A scanner writes a name into the pixels of screen saves, dose reports, secondary captures, ultrasound and digitised
film. The signs are those of the header that de-identification tools of the field go by (the filters of RSNA's Clinical
Trial Processor among them). They find the usual cases and prove nothing: look at the contact sheet too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from data_prep.importers.fields import Fields
from data_prep.names import shown
from fedhpc.errors import ShardError

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6")
RULES = Path(__file__).parents[1] / "assets" / "blanking.yaml"
MATCHED = ("modality", "manufacturer", "model", "rows", "columns", "image_type")

BURNED_IN = "says that text is burned into its pixels (BurnedInAnnotation)"
SECONDARY_CAPTURE = "a secondary capture, which may show text"
IS_ULTRASOUND = "ultrasound, which usually shows text"
SCREEN = "a screen save or a report as an image, which shows text"
FILM = "digitised film, which may show text"
COLOUR = "a colour image of a scanner that measures grey: a fusion, a drawing or a report"
LOCALIZER = "a localizer"
PROJECTION = "a projection of a volume, not a slice of it"

SCREEN_WORDS = re.compile(r"screen|\bsaves?\b|\bsaved\b|dose (report|info)|patient protocol|summary|snapshot", re.I)


@dataclass(frozen=True)
class Verdict:
    """What the header says of the pixels.

    Attributes:
        why: why the image is refused; empty where it is not.
        suspected: it may show text, so a person may want to look at it.
        blank: rectangles to blank: left, top, width, height.
    """

    why: str = ""
    suspected: bool = False
    blank: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class Rule:
    """Where one kind of device writes text.

    Attributes:
        match: regular expressions by field of `MATCHED`; all of them must match the whole value.
        blank: rectangles left, top, width, height, in pixels; a negative left or top counts from the other edge.
    """

    match: tuple[tuple[str, re.Pattern[str]], ...]
    blank: tuple[tuple[int, int, int, int], ...]


def screened(fields: Fields, sop_class: str, rules: Path | None = None) -> Verdict:
    """Return whether an image is refused, or which parts of it are blanked.

    Args:
        fields: of the header.
        sop_class: its SOP class.
        rules: a table of device rules, before the built-in one.
    """
    words = _image_type(fields)
    if "LOCALIZER" in words:
        return Verdict(LOCALIZER)
    if words & {"MIP", "MAXIMUM_IP", "PROJECTION IMAGE", "MINIP", "VOLREN", "VRT"}:
        return Verdict(PROJECTION)
    why = _suspicion(fields, sop_class, words)
    for rule in (*(blanking_rules(rules) if rules else ()), *blanking_rules(RULES)):
        if _matches(rule, fields) and why in ("", BURNED_IN):
            return Verdict(blank=rule.blank)
    return Verdict(why, bool(why))


def _suspicion(fields: Fields, sop_class: str, words: set[str]) -> str:
    if sop_class == CAPTURE or sop_class.startswith(CAPTURE + "."):
        return SECONDARY_CAPTURE
    if sop_class in ULTRASOUND or sop_class.startswith(tuple(f"{one}." for one in ULTRASOUND)):
        return IS_ULTRASOUND
    if fields.text("Modality").upper() == "US":
        return IS_ULTRASOUND
    if fields.text("BurnedInAnnotation").upper() not in ("", "NO"):
        return BURNED_IN
    conversion = fields.text("ConversionType").upper()
    if conversion:
        return FILM if conversion == "DF" else SECONDARY_CAPTURE
    if any(map(SCREEN_WORDS.search, [fields.text("SeriesDescription"), fields.text("ProtocolName"), *words])):
        return SCREEN
    return COLOUR if fields.whole("SamplesPerPixel", 1) > 1 else ""


def _image_type(fields: Fields) -> set[str]:
    return {word.upper() for word in fields.words("ImageType")}


def _matches(rule: Rule, fields: Fields) -> bool:
    return all(pattern.fullmatch(_value(fields, field)) for field, pattern in rule.match)


def _value(fields: Fields, field: str) -> str:
    if field in ("rows", "columns"):
        return str(fields.whole(field.capitalize(), 0))
    if field == "image_type":
        return "\\".join(sorted(_image_type(fields)))
    return fields.text(
        {"modality": "Modality", "manufacturer": "Manufacturer", "model": "ManufacturerModelName"}[field]
    )


@lru_cache(maxsize=4)
def blanking_rules(path: Path) -> tuple[Rule, ...]:
    """Return the device rules of a YAML table.

    Raises:
        ShardError: a table that is none, or a rule that cannot be read.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(_rule(entry) for entry in table["rules"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, re.error) as error:
        raise ShardError(
            f"blank={shown(path)}: is no table of device rules ({type(error).__name__}). See {RULES.name} in "
            "data_prep/assets for one",
            code="prepare",
        ) from error


def _rule(entry: dict[str, Any]) -> Rule:
    match = {str(field): str(pattern) for field, pattern in entry["match"].items()}
    if not match or set(match) - set(MATCHED):
        raise ValueError
    blank = tuple(_rectangle(box) for box in entry["blank"])
    if not blank:
        raise ValueError
    return Rule(tuple((field, re.compile(pattern, re.I)) for field, pattern in match.items()), blank)


def _rectangle(box: Sequence[Any]) -> tuple[int, int, int, int]:
    left, top, width, height = (int(value) for value in box)
    if width < 1 or height < 1:
        raise ValueError
    return left, top, width, height
