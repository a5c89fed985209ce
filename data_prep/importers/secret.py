"""The site's secret, which turns names into pseudonyms: made on first use, readable by its owner only, never copied."""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.names import shown
from fedhpc.errors import ShardError

SECRET_BYTES = 32
CODE_DIGITS = 16


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed codes of one site: HMAC-SHA256, the first 64 bits, as 16 hex digits.

    Without the secret a code neither tells what it stands for nor lets a guess be tested.

    Attributes:
        secret: 32 random bytes (private, never leaves the site).
    """

    secret: bytes = field(repr=False)

    def patient(self, identity: str) -> str:
        """Return the pseudonym of a patient."""
        return self._code("patient", identity)

    def file(self, relative: str) -> str:
        """Return the code of a file, by its path below the source."""
        return self._code("file", relative)

    def digest(self, text: str) -> str:
        """Return the code of anything else."""
        return self._code("digest", text)

    def _code(self, purpose: str, text: str) -> str:
        message = f"{purpose}\0{text}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:CODE_DIGITS]


def default_path() -> Path:
    """Return where the secret lies unless told otherwise: in the user's configuration, beside no data."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "fedhpc" / "site_secret"


def site_pseudonyms(path: Path, out: Path) -> Pseudonyms:
    """Return the pseudonyms of the secret at `path`; make it where there is none.

    Args:
        path: the file of 64 hex digits.
        out: the folder of the shards, where the secret must not lie, since shards are copied.

    Raises:
        ShardError: inside `out`, others may read it, not the user's own, or no such secret.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise _refused(path, "lies in the folder of the shards. Keep it where shards are never copied from")
    try:
        if not path.exists():
            _make(path)
        owner = path.stat()
        if owner.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or owner.st_uid != os.geteuid():
            raise _refused(path, "others may read it. Make it yours, and `chmod 600` it")
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise _refused(path, f"{os.strerror(error.errno or 0)}. Name a file of your own by --secret") from error
    except ValueError as error:
        raise _refused(path, "is no secret of this program. Move it away, or name another by --secret") from error
    if len(secret) != SECRET_BYTES:
        raise _refused(path, "is no secret of this program. Move it away, or name another by --secret")
    return Pseudonyms(secret)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link fails where another process was faster, and then its secret stands.
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)


def _refused(path: Path, problem: str) -> ShardError:
    return ShardError(f"secret={shown(path)}: {problem}", code="prepare.secret")
