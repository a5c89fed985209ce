"""What each site says of itself before the first round, as rank 0 reads it and all agree on it."""

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.models.device import Device
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.site.account import SYNTHETIC
from fedhpc.site.data.shard import Shard
from fedhpc.transport.base import Transport
from fedhpc.transport.messages import Count, Name, of_each, parsed


class SiteFacts(TypedDict):
    """What a site says of itself before the first round (public)."""

    site: Name
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=2, max_length=1000)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=4)]
    weight: Annotated[int, Field(ge=0, le=2**48)]
    rank: Count
    host: Name
    synthetic: bool
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


def gathered_facts(
    config: RunConfig, transport: Transport, own: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Return the facts of each site, in site order; only at rank 0. `own`: the `facts_of` this rank's sites."""
    gathered = transport.gather([json.dumps(fact).encode() for fact in own], "hello")
    return tuple(read_facts(config, transport.size, gathered)) if gathered else ()


def facts_of(config: RunConfig, shard: Shard, transport: Transport, device: Device) -> dict[str, Any]:
    """Return what a site of this rank says of itself (public)."""
    declared = {site.name: site.weight for site in config.data.sites}[shard.site]
    # With privacy on the config has declared a weight, so the true count is never put into a message.
    weight = declared if declared is not None else len(shard.indices("train"))
    return {
        "site": shard.site,
        "classes": shard.classes,
        "image_shape": shard.image_shape,
        "weight": weight,
        "rank": transport.rank,
        "host": socket.gethostname(),
        "synthetic": shard.created_by.startswith(SYNTHETIC),
        "device": str(device.device),
    }


def agreed_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return classes, image shape and weights of all sites, and whether all patients are synthetic; rank 0 calls it.

    Raises:
        InputError: shards of different classes or shapes.
    """
    first = facts[0]
    for key in ("classes", "image_shape"):
        other = [f"{f['site']} has {f[key]}" for f in facts if f[key] != first[key]]
        if other:
            raise InputError(
                f"shards differ in {key}: {first['site']} has {first[key]}, {'; '.join(other)}; remake them alike",
                code="shard.differ",
            )
    common = {"classes": first["classes"], "image_shape": first["image_shape"]}
    return {**common, "weights": [f["weight"] for f in facts], "synthetic": all(f["synthetic"] for f in facts)}


def check_agreed(common: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> None:
    """Refuse another task than that of a site's own shard, whatever the aggregator says.

    With fewer classes than a shard has, whether training fails would tell whether a patient is of a class. Models of
    patients who are called synthetic are not protected.

    Raises:
        InputError: they differ.
    """
    for fact in own:
        wrong = [key for key in ("classes", "image_shape") if list(common[key]) != list(fact[key])]
        if wrong:
            raise InputError(
                f"site {fact['site']}: the aggregator's {' and '.join(wrong)} are not those of its shard. Do not train "
                "with it before that is explained",
                code="shard.differ",
            )
        if common["synthetic"] and not fact["synthetic"]:
            raise InputError(
                f"site {fact['site']}: the aggregator says that all patients are synthetic, and its shard's are not "
                "known to be. Do not train with it before that is explained",
                code="shard.differ",
            )
