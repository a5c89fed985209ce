"""Which shard a site started a run with, kept inside the site: a shard exchanged between two starts is noticed.

`sites/<site>/shard.json` (mode 0600) holds a random salt and HMAC-SHA256(salt, digest of the shard). The digest itself
is private: whoever had it could test a guess of the whole shard. Neither leaves the site; the mark goes into the site's
own checkpoints only.
"""

import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from fedhpc.errors import ShardError
from fedhpc.util.files import PRIVATE, make_folder, read_json, write_json

REMEDY = "Remove it only if this site's shard is the one that the run was started with"


def shard_mark(folder: Path, site: str, digests: Sequence[str], *, started: bool) -> str:
    """Return the mark of the shards that a learner trains on (private), 64 hex digits.

    Args:
        folder: the site's in the run directory; the mark is recorded there at the first start.
        site: the learner's name.
        digests: of its shards, in site order: one, but for the pooled learner.
        started: whether the run has finished a round; before, another shard replaces the one on record.

    Raises:
        ShardError: where the shard is not the one on record.
    """
    path = folder / "shard.json"
    if path.exists():
        recorded = read_json(path, REMEDY)
        mark = _mark(str(recorded.get("salt")), digests)
        if hmac.compare_digest(mark, str(recorded.get("mark"))):
            return mark
        if started:
            raise ShardError(
                f"shard of site {site!r}: is not the one that this run was started with: images, labels, patients, "
                "splits or their order differ. Put that one back, or start in a new --run-dir",
                private=f"{path}: records another shard than the one of site {site!r} that was opened now",
                code="shard.other",
            )
    salt = secrets.token_hex(32)
    mark = _mark(salt, digests)
    make_folder(folder)
    write_json(path, {"salt": salt, "mark": mark}, mode=PRIVATE)
    return mark


def _mark(salt: str, digests: Sequence[str]) -> str:
    return hmac.new(salt.encode(), " ".join(digests).encode(), "sha256").hexdigest()
