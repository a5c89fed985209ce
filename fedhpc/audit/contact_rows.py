"""A reconstruction and what it is worth; three of them make a row of the contact sheet."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedhpc.audit.findings import WITH_DP, Finding, Kind
from fedhpc.audit.releases import CLIP_ONLY, NO_PRIVACY, SETTINGS

RECOGNISABLE = 0.5
"""The SSIM (of features: the cosine) from which a reconstruction counts as recognisable. What the attacks make of noise
alone reaches 0.06 to 0.24 on phantom and MRI images, what they make of an open update 0.97 and more."""
VICTIM, NEAREST = "the image", "most like it in training"


@dataclass(frozen=True)
class Guess:
    """A reconstruction [C, H, W] (or of features, [H, W]) with what it is worth."""

    image: NDArray[np.float32]
    value: float
    caption: tuple[str, ...]
    details: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One attack in three settings, private: the original and a guess in each of SETTINGS.

    Attributes:
        attack, note: what was done.
        original, original_caption: what was sought, or what came nearest.
        quantity: what the guesses' values are: "SSIM", or for features "cosine".
        must_work: whether it proves nothing unless it works without privacy.
        limit: the value from which a guess counts as recognisable.
        details: for audit.json.
    """

    attack: str
    note: str
    quantity: str
    must_work: bool
    original: NDArray[np.float32]
    original_caption: str
    guesses: Mapping[str, Guess]
    details: Mapping[str, float] = field(default_factory=dict)
    limit: float = RECOGNISABLE

    def findings(self) -> list[Finding]:
        """Without noise the attack must work, with DP it must not; where it never works nothing is judged."""
        open_values = (self.guesses[NO_PRIVACY].value, self.guesses[CLIP_ONLY].value)
        works = self.must_work or max(open_values) > self.limit
        kinds: dict[str, Kind] = dict.fromkeys(SETTINGS, "control" if self.must_work else "shown")
        kinds[WITH_DP] = "claim" if works else "shown"
        return [self._finding(setting, guess, kinds[setting]) for setting, guess in self.guesses.items()]

    def _finding(self, setting: str, guess: Guess, kind: Kind) -> Finding:
        value, limit_name, details = guess.value, "recognisable from", {**guess.details, **self.details}
        found = Finding(self.attack, setting, self.quantity, value, value, self.limit, limit_name, kind, details)
        return replace(found, unnoised=True)
