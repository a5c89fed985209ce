"""The section `stress`: what is wrong with some sites, on purpose, to see what a run makes of it."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from fedhpc.util.section import Section

DataCase = Literal[
    "label_flip",
    "label_noise",
    "inverted_contrast",
    "noise_images",
    "swapped_modality",
    "constant_images",
    "kspace_spikes",
]
UpdateCase = Literal[
    "sign_flip",
    "scaled",
    "gaussian",
    "nan",
    "wrong_length",
    "replayed",
    "inner_product",
    "inner_product_optimal",
    "alie",
    "alie_optimal",
    "mimic",
]
SLOW: Literal["slow"] = "slow"
DATA_CASES: tuple[DataCase, ...] = get_args(DataCase)
UPDATE_CASES: tuple[UpdateCase, ...] = get_args(UpdateCase)
STRENGTH = {
    "label_flip": 1.0,
    "label_noise": 0.5,
    "kspace_spikes": 1.0,
    "scaled": 10.0,
    "gaussian": 10.0,
    "inner_product": 2.0,
    "alie": 1.5,
    "slow": 10.0,
}
"""What `strength: null` stands for; the other cases have none."""


class Stress(Section):
    """A stress test. The run trains, charges its ledgers and writes its model as any other; header and records say so.

    Cases that corrupt training and validation images of one site, as they are loaded there (the test split stays as
    it is, so that metrics can be compared with those of the clean run):

    - `label_flip`: class k of K becomes K - 1 - k, at a share of `strength` of the images
    - `label_noise`: a share of `strength` of the images gets another label at random
    - `inverted_contrast`: dark is bright
    - `noise_images`: uniform noise in the place of the images
    - `swapped_modality`: the order of the tissues' brightness is turned round, air stays dark: as T1 for T2
    - `constant_images`: the same gray everywhere
    - `kspace_spikes`: stripes, from three spikes in the Fourier transform, each `strength` times its largest value

    Cases that replace the update of the named sites, on its way into the aggregator:

    - `sign_flip`: minus the update. `scaled`: `strength` times the update
    - `gaussian`: random numbers, `strength` times as long as the update
    - `nan`, `wrong_length`, `replayed`: not a number in each entry; an entry too many; the bytes of the round before
    - `inner_product`: -`strength` times the mean of the honest (Xie et al. 2020, "Fall of Empires")
    - `alie`: the mean of the honest minus `strength` of their deviations, entry by entry (Baruch et al. 2019)
    - `inner_product_optimal`, `alie_optimal`: with the strength that moves the result of the run's own rule most
    - `mimic`: a copy of the first honest site's update (Karimireddy et al. 2022)

    `slow` makes each step of the named sites take `strength` times as long (they sleep), also where their speed is
    measured; nothing else of the run changes.

    `from_round` lets the sites behave before it: what a rule learns of them in the first rounds is then no help.

    Several named sites collude: where the case looks at the honest updates, all of them send the same.
    """

    case: DataCase | UpdateCase | Literal["slow"] = Field(description="what is wrong, see above")
    sites: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="the sites that it is wrong with")
    strength: Annotated[float, Field(gt=0, le=1e5)] | None = Field(
        default=None, description="how much of it; null: what is usual for the case"
    )
    from_round: Annotated[int, Field(ge=1)] = Field(
        default=1, description="the first round in which updates are replaced; for these cases only"
    )

    @property
    def of_data(self) -> bool:
        """Whether the case corrupts images or labels, and not updates."""
        return self.case in DATA_CASES

    @property
    def of_updates(self) -> bool:
        """Whether the case replaces updates."""
        return self.case in UPDATE_CASES

    @property
    def amount(self) -> float:
        """The strength, or what is usual for the case."""
        return STRENGTH.get(self.case, 1.0) if self.strength is None else self.strength

    @property
    def label(self) -> str:
        """The case and the sites in a few words."""
        late = f" from round {self.from_round} on" if self.from_round > 1 else ""
        return f"{self.case} at {', '.join(self.sites)}{late}"

    @property
    def notice(self) -> str:
        """What stands above everything else in the header of the run."""
        if self.case == SLOW:
            return f"STRESS TEST: {self.label}, by a factor of {self.amount:g}, on purpose"
        return f"STRESS TEST: {self.label}, on purpose. The model of this run is not for use"
