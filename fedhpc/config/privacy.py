"""The section `privacy`: differential privacy of the training units."""

from typing import Annotated, Literal

from pydantic import Field

from fedhpc.util.section import Section


class Privacy(Section):
    """DP-SGD at each hospital when `epsilon` is set (add-or-remove adjacency of one `unit`).

    `trust` says from whom the guarantee protects, and so how much noise a site adds:

    - `aggregator`: from an aggregator that sees every site's update. Each carries its full noise; no site is trusted.
    - `sites`: the aggregator sees only the sum over the n sites (secure aggregation), and they share the noise: each
      adds the variance of the full noise divided by n - colluding_sites - tolerated_dropouts. Each site trusts that of
      those that took part at least so many, itself among them, added their share and kept it to themselves. A site
      that may use its own share to learn about the others counts as colluding, and so does the first hospital where
      the aggregator shares its rank. With certificates (exchange.tls) it holds against an aggregator that departs from
      the protocol, else against one that keeps to it; `epsilon_if_unmasked` in header, summary and `run.py privacy` is
      what a site's own share leaves its training patients if that fails; of validation and test patients it leaves
      nothing that could be promised. 2 x (sites - tolerated_dropouts) must be above sites + colluding_sites.
    """

    off: bool = Field(default=False, description="train without privacy; a config writes it as `privacy: off`")
    epsilon: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="epsilon of the whole run for each training unit of each site, 0.01 or more; null only with "
        "`privacy: off`",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-5, description="delta of the guarantee: at most 1 / (10 x the largest weight)"
    )
    lifetime_epsilon: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="a cap on the epsilon that all runs together may spend on a unit, below the site ledger's own "
        "cap; null: the site ledger's",
    )
    site_ledger: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="the folder of the site ledger, with {site} for the site's name; null: a default place; the "
        "variable FEDHPC_SITE_LEDGER comes before it",
    )
    unit: Literal["patient", "image"] = Field(
        default="patient", description="whom the guarantee protects: all images of a patient together, or one image"
    )
    clip_norm: Annotated[float, Field(ge=1e-9, le=1e9)] = Field(
        default=1.0,
        description="L2 bound on the gradient of one unit; far below 1e-9 the squares in float32 would be 0",
    )
    sample_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="probability with which each unit takes part in a step (Poisson sampling)"
    )
    max_images_per_patient: Annotated[int, Field(ge=1)] = Field(
        default=4,
        description="images of a patient that one step uses at most, drawn anew each time; only with unit=patient",
    )
    max_physical_batch: Annotated[int, Field(ge=1)] = Field(
        default=128,
        description="images that are in memory at once in a private step: bounds memory, changes no result beyond "
        "rounding; 1: the bound on a unit is proven for any network and against any aggregator",
    )
    pad_batches: bool | Literal["auto"] = Field(
        default="auto",
        description="fill each batch of a private step with empty images to a multiple of 16, so that few shapes "
        "occur; auto: on a GPU. An empty image adds nothing to the sum and is in no count",
    )
    feature_mean_noise: Annotated[float, Field(ge=0.1, le=1e6)] = Field(
        default=12.0,
        description="noise multiplier of the one release of model.feature_mean=sites; it is charged beside the rounds, "
        "whose noise grows so that both together cost `epsilon`",
    )
    noise_seed: int | None = Field(
        default=None,
        description="for tests only: makes the noise and all else that privacy rests on reproducible, and voids the "
        "guarantee",
    )
    trust: Literal["aggregator", "sites"] = Field(
        default="aggregator",
        description="from whom the guarantee protects: aggregator (no site trusts another or the aggregator) or "
        "sites (secure aggregation, shared noise); see above",
    )
    colluding_sites: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="how many sites may give the aggregator all they know; required with trust=sites"
    )
    tolerated_dropouts: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how many sites may fail in a round without ending the run; only with trust=sites"
    )
