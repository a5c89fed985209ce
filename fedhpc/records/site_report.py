"""What a site says of itself after a round, as rank 0 reads it."""

from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from fedhpc.errors import PayloadError
from fedhpc.transport.messages import Name, parsed

HEAD = r"^([0-9a-f]{16})?$"
ACCOUNT_HEAD = r"^([0-9a-f]{16}:[0-9a-f]{16})?$"
Spent = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None


@checked(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class SiteReport:
    """What a site says of itself after a round: what it has spent, and the head of its ledger (public).

    Attributes:
        site: its name.
        epsilon: of its training patients; None without privacy.
        evaluation_epsilon: of its validation and test patients; None where that is not counted.
        learner, head: whose ledger it is, and the beginning of its last seal; empty without privacy.
        account: the head of the site ledger, "<its id>:<beginning of its last seal>"; empty without privacy.
    """

    site: Name
    epsilon: Spent
    evaluation_epsilon: Spent
    learner: Annotated[str, Field(max_length=255)]
    head: Annotated[str, Field(pattern=HEAD)]
    account: Annotated[str, Field(pattern=ACCOUNT_HEAD)] = ""

    def pack(self) -> bytes:
        """As bytes."""
        return REPORT.dump_json(self)

    @classmethod
    def read(cls, site: str, payload: bytes, learner: str) -> "SiteReport":
        """The inverse of `pack`, of the payload that came from `site`.

        Args:
            site: whose session it came through.
            payload: the bytes.
            learner: whose ledger the site may speak of; empty without privacy.

        Raises:
            PayloadError: no report, one that names another site or ledger, or one without its ledger's head.
        """
        report = parsed(payload, REPORT, f"site {site}, metrics")
        if report.site != site:
            raise PayloadError(f"site {site}, metrics: the report names another site; each speaks for itself")
        if report.learner != learner or bool(report.head) != bool(learner) or (report.epsilon is None) == bool(learner):
            raise PayloadError(f"site {site}, metrics: the report is not about the ledger of {learner or 'nobody'}")
        return report


REPORT = TypeAdapter(SiteReport)
