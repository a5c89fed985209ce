"""The key `exchange`: what of an update travels, how exactly, and under which protection."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedhpc.config.data import Data, placed
from fedhpc.util.section import Section

Density = Annotated[float, Field(gt=0, le=1)]


class Exchange(Section):
    """What a site and the aggregator send each other: how much of an update, how exactly, and how it is protected.

    Where one process plays all sites there is no wire: `tls` and `pki` are not used.
    """

    density: Density = Field(default=0.1, description="share of the entries of an update that a site sends")
    density_down: Density | None = Field(
        default=None, description="share of the entries that the aggregator sends to the sites; null: as density"
    )
    warm_up_rounds: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="in the first so many rounds both ways send more: the density falls from near 1 to its own by the "
        "same factor from round to round",
    )
    selection: Literal["global", "per_tensor"] = Field(
        default="global",
        description="which entries are sent: the largest of the whole update, or that share of each parameter tensor",
    )
    value_bits: Literal[32, 16, 8, 7, 6, 5, 4, 3] = Field(
        default=4,
        description="bits of a sent value: 32 (float32), 16 (as exact as fp16), or 8 to 3 (log-scaled); the rounding "
        "error is sent later",
    )
    rounding: Literal["nearest", "stochastic"] = Field(
        default="nearest", description="to the nearest value that can be sent, or up or down at random without bias"
    )
    tls: bool = Field(
        default=True,
        description="encrypt what a hospital and rank 0 exchange and check both ends by certificate (TLS 1.3)",
    )
    pki: str | None = Field(
        default=None,
        description="the folder of the certificates (`run.py pki`), with {site} for the site's name or `aggregator`; "
        "null: `pki` beside the shards",
    )
    search: bool = Field(
        default=True,
        description="search each payload for pixels of the site's own images before it is sent; one that holds some is "
        "refused. With privacy on and trust: aggregator, what carries noise is sent all the same, and the hospital's "
        "own log tells of the find: a refusal would tell others whose image is in the shard",
    )

    @property
    def down(self) -> float:
        """The density of the server's update."""
        return self.density if self.density_down is None else self.density_down

    def pki_folder(self, data: Data, name: str) -> Path:
        """Where the certificate and the key of a site, or of the aggregator, lie."""
        beside = data.shard_path(name).parent / "pki"
        return beside if self.pki is None else placed("exchange.pki", self.pki, name)
