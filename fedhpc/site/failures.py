"""What the others learn of a failure at a site, and what its own log keeps."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedhpc.errors import Interrupted, PayloadError, SiteError, site_failure
from fedhpc.util.log import LogFile


class Failures:
    """Those of one site.

    Attributes:
        log: the site's own (private); None: it keeps none.
    """

    def __init__(self, site: str) -> None:
        self._site = site
        self.log: LogFile | None = None

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Turn a failure inside into a SiteError that tells the others its kind only; the log gets all of it.

        Args:
            what: place and work, as "round 3: training failed".
        """
        try:
            yield
        except (Interrupted, SiteError, PayloadError):
            raise
        except Exception as error:
            failure = site_failure(self._site, what, error)
            if self.log is not None:
                self.log.write("ERROR", f"{failure}\n{failure.private}")
            raise failure from error
