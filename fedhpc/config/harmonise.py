"""The section `harmonise`: what each hospital does to each image by itself before a network sees it.

Only names, bounds and descriptions are here; what each step does is in `fedhpc.site.data.harmonise`.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from fedhpc.aggregation.rules import one_of
from fedhpc.util.section import Section

Finite = Annotated[float, Field(ge=-1e9, le=1e9)]


class Step(Section):
    """One step by its name; a subclass narrows it to a literal and adds its parameters."""

    step: str


class ZScore(Step):
    """Each channel of each image to mean 0 and standard deviation 1; a constant one to 0."""

    step: Literal["zscore"] = Field(default="zscore", description="to mean 0 and standard deviation 1")
    mask: Literal["image", "foreground"] = Field(
        default="image",
        description="mean and deviation of all pixels, or of the foreground only: the largest piece above Otsu's "
        "threshold, its holes filled",
    )


class Window(Step):
    """A window of CT, from shards in Hounsfield units (`prepare dicom --window hu`): 0 below it, 1 above."""

    step: Literal["window"] = Field(default="window", description="a CT window, to 0 to 1")
    centre: Finite = Field(default=0.0, description="of the window, in the shard's units")
    width: Annotated[float, Field(gt=0, le=1e9)] = Field(default=2000.0, description="of the window")


class Clip(Step):
    """Pixels beyond two percentiles of their own image become these."""

    step: Literal["clip"] = Field(default="clip", description="cut the extremes off, image by image")
    low: Annotated[float, Field(ge=0, lt=50)] = Field(default=0.5, description="the lower percentile")
    high: Annotated[float, Field(gt=50, le=100)] = Field(default=99.5, description="the upper percentile")


class Smooth(Step):
    """Wiener filter by the image's own noise: flat parts are smoothed, edges stay, clean images change little."""

    step: Literal["smooth"] = Field(default="smooth", description="smooth as much as the image is noisy")
    size: Literal[3, 5, 7] = Field(default=3, description="pixels a side of the filter's window")
    strength: Annotated[float, Field(gt=0, le=10)] = Field(
        default=1.0, description="factor of the noise's estimated standard deviation"
    )


class Nyul(Step):
    """Piecewise linear, so that percentiles of the foreground fall on landmarks of a public reference.

    Nyul and Udupa 1999, with the deciles of Shah et al. 2011.
    """

    step: Literal["nyul"] = Field(default="nyul", description="percentiles of the foreground onto public landmarks")
    landmarks: Annotated[tuple[Finite, ...], Field(min_length=11, max_length=11)] = Field(
        description="of a public reference: percentiles 1, 10, 20, ..., 90, 99; `run.py prepare landmarks` prints them"
    )

    @field_validator("landmarks")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if list(values) != sorted(values) or values[0] == values[-1]:
            raise ValueError("percentiles never fall, and the last is above the first")
        return values


class Fourier(Step):
    """The lowest spatial frequencies get the amplitudes of a public reference and keep their phase.

    Yang and Soatto 2020, "FDA: Fourier Domain Adaptation".
    """

    step: Literal["fourier"] = Field(default="fourier", description="amplitudes of low frequencies of a reference")
    amplitude: Annotated[tuple[tuple[Finite, ...], ...], Field(min_length=1, max_length=63)] = Field(
        description="[k][k] with k odd, frequency 0 in the middle; `run.py prepare landmarks` prints them"
    )

    @field_validator("amplitude")
    @classmethod
    def _square(cls, rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if len(rows) % 2 == 0 or any(len(row) != len(rows) for row in rows):
            raise ValueError("is no square of an odd number of frequencies a side")
        return rows


class N4(Step):
    """The slow shading of an MR coil is removed (Tustison et al. 2010), by SimpleITK.

    It takes some 150 ms of CPU time an image of 64 x 64 pixels: best before a frozen backbone, whose features are
    computed once.
    """

    step: Literal["n4"] = Field(default="n4", description="N4 bias field correction; needs `pip install SimpleITK`")
    iterations: Annotated[int, Field(ge=1, le=200)] = Field(default=20, description="at each of three resolutions")


STEPS: tuple[type[Step], ...] = (ZScore, Window, Clip, Smooth, Nyul, Fourier, N4)
"""All that a chain may hold."""
Chain = tuple[Step, ...]
if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = one_of(STEPS, "step")
Steps = Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=16)]
"""A chain as a config holds it."""
DEFAULT: Chain = (ZScore(),)


def chain_text(chain: Chain) -> str:
    """Return the steps of a chain with their numbers in one line; longer lists of numbers are left out.

    >>> chain_text((Clip(low=1.0), ZScore()))
    'clip (low 1, high 99.5), then zscore (mask image)'
    """
    return ", then ".join(map(_step_text, chain))


def _step_text(step: Step) -> str:
    named = step.model_dump(mode="json", exclude={"step"}).items()
    values = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in named
              if not isinstance(value, list)]  # fmt: skip
    return f"{step.step} ({', '.join(values)})" if values else step.step
