"""The section `data`: the sites and their shards."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedhpc.config.harmonise import Steps
from fedhpc.errors import ConfigError
from fedhpc.util.masking import expanded, hide, variables_of
from fedhpc.util.section import Section

PHANTOMS, REFERENCE_PHANTOMS = "phantoms", 200
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]


def placed(key: str, template: str, site: str, *, own: bool = False) -> Path:
    """Return the path that `template`, the value of `key`, stands for at this rank.

    Other ranks are never told what its environment variables hold (`fedhpc.util.masking`).

    Args:
        key: of the config, or an environment variable.
        template: a path with `{site}`, `{hostname}` and `$NAME` in it.
        site: its name.
        own: the template is itself the value of an environment variable of this account.

    Raises:
        ConfigError: an environment variable that is not set here.
    """
    node = os.uname().nodename.partition(".")[0]
    named = template.replace("{site}", site).replace("{hostname}", node)
    unset = [name for name in variables_of(named) if name not in os.environ]
    if unset:
        told = f"${key}: a variable in it" if own else f"{key}={template}: {', '.join(unset)}"
        raise ConfigError(
            f"{told} is not set on {node}; export it there, or write the path",
            code="config.variable-unset",
        )
    path = Path(expanded(named, (site, node)))
    if own:
        hide(str(path), f"${key}")
    return path


class Site(Section):
    """One hospital. `weight` is public: its number of training units as declared to the federation.

    With privacy on, the weight is the site's share in the mean *and* the denominator of its private mean gradient,
    since the true count is private. Without privacy it defaults to the number of training images in the shard.
    """

    name: SiteName = Field(
        description="the site's name, which its shard carries too: lower-case letters, digits, _ and -, at most 31 "
        "characters"
    )
    weight: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description="its number of training units (see privacy.unit) as declared to the federation: public; required "
        "with privacy on; null: the number of training images in its shard",
    )
    speed: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="its speed as a share of a normal site's, declared to the federation (public): used by "
        "schedule.policy=plan; null: 1, or measured where no site declares one",
    )
    node: str | None = Field(default=None, description="the node that has its shard: its rank must run there")
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = Field(
        default=None,
        description="the DICOM modality of all its images (MR, CT, ...) as declared to the federation: public, shown "
        "in reports and the model card, and checked at the hospital against its shard; null: not declared",
    )
    lifetime_cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="the cap of its own account over all runs (run.py budget) as declared to the federation: public, "
        "shown in reports, and checked at the hospital: a private run is refused where the account allows more; null: "
        "not declared",
    )
    harmonise: Steps | None = Field(
        default=None,
        description="a chain of this site's own in place of `harmonise`, as for a scanner with another intensity scale "
        "(public); null: that of all sites. The public reference of model.features goes by `harmonise`: a chain that "
        "gives other features than that needs a reference of its own kind, or a network that is trained",
    )


class Phantom(Section):
    """The built-in cohort, made on first use where its shards are missing (`run.py prepare phantom`)."""

    seed: int = Field(default=0, description="seed of the whole cohort")
    images: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=8000, description="images over all sites together"
    )
    image_size: Annotated[int, Field(ge=32, le=512)] = Field(default=64, description="pixels a side")
    difficulty: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.26, description="from 0, where the classes differ at a glance, to 1, where they do not differ at all"
    )


class Data(Section):
    """Where the shards lie, as the rank that reads one sees it.

    In `shards`, `{site}` stands for the site's name, `{hostname}` for its node's, `$NAME` for an environment variable,
    whose value is sent to no other rank.
    """

    shards: Annotated[str, Field(pattern=r".*\{site\}.*")] = Field(
        description="path of a site's shard (.h5), with {site} for the site's name"
    )
    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = Field(description="the hospitals in rank order")
    in_memory: bool | Literal["auto"] = Field(
        default="auto",
        description="whether a rank loads the images of its shard at the start or reads them from the file; auto: "
        "loads them where they take less than a quarter of the free memory",
    )
    phantom: Phantom | None = Field(
        default=None, description="the built-in synthetic cohort; null: the shards are yours"
    )
    public_reference: str | None = Field(
        default=None,
        description="a shard of public images, of any source, which model.features is fitted to; phantoms: drawn on "
        "first use, beside the shards, so that no hospital sets images aside (see model.feature_mean)",
    )

    def reference_path(self, image_size: int) -> Path | None:
        """Return the shard of public images, as rank 0 sees it; of phantoms there is one for each size of image.

        Args:
            image_size: rows and columns of the sites' images.
        """
        if self.public_reference != PHANTOMS:
            return None if self.public_reference is None else Path(self.public_reference)
        return self.shard_path("aggregator").parent / f"public_phantoms_{REFERENCE_PHANTOMS}_{image_size}.h5"

    @property
    def identity(self) -> str:
        """Tells whether two runs were on the same data: the section, without how it is read."""
        return json.dumps(self.model_dump(mode="json", exclude={"in_memory"}), sort_keys=True)

    def shard_path(self, site: str) -> Path:
        """Return the shard of `site`."""
        return placed("data.shards", self.shards, site)
