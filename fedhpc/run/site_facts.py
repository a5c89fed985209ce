"""What each site says of itself before the first round, as rank 0 reads it."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PayloadError
from fedhpc.run.secure_channel import sites_by_rank
from fedhpc.transport.messages import Count, Name, of_each, parsed


class SiteFacts(TypedDict):
    """What a site says of itself before the first round (public)."""

    site: Name
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=2, max_length=1000)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=4)]
    weight: Annotated[int, Field(ge=0, le=2**48)]
    rank: Count
    host: Name
    device: Annotated[str, Field(pattern=r"^[a-z]{1,20}(:\d{1,4})?$")]


SITE_FACTS = TypeAdapter(SiteFacts)


def read_facts(config: RunConfig, ranks: int, payloads: Sequence[bytes]) -> list[SiteFacts]:
    """Return every site's facts, in site order, each checked against the site whose session it came through.

    Raises:
        PayloadError: naming a site whose message is none, or speaks for another site or rank.
    """
    places = {config.site_names[i]: rank for rank, block in enumerate(sites_by_rank(config, ranks)) for i in block}
    declared = {site.name: site.weight for site in config.data.sites}

    def read(site: str, payload: bytes) -> SiteFacts:
        facts = parsed(payload, SITE_FACTS, f"site {site}, hello")
        if facts["site"] != site or facts["rank"] != places[site] or declared[site] not in (None, facts["weight"]):
            raise PayloadError(f"site {site}, hello: it speaks for another site, rank or weight than its own")
        return facts

    return of_each(payloads, config.site_names, "hello", read)
