"""What the operator decides: where the service keeps its runs, what it may read, and how much it may take."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..machine import DEFAULT_SHARE, memory_bytes
from ..sizes import show_size
from .places import Places

TOKEN = "TILECOV_TOKEN"  # noqa: S105  (the name of the variable)
SECRETS = "/run/secrets"
_SHORTEST = 16  # letters of a token


@dataclass(frozen=True)
class Settings:
    """The service's settings.

    Parameters
    ----------
    root : str
        A path or fsspec URL; the queue and every run lie below it.
    allow : tuple of str
        Prefixes below which shards may lie.
    token : str
        Empty where none is asked for: on the loopback only.
    storage_options : dict
        For root and shards alike. May hold credentials: never shown or stored, and no request may carry any.
    scheduler : str or None
        Address of the Dask scheduler that runs use.
    host : str
    port : int
    concurrent : int
        Runs at a time.
    memory : int
        Bytes for all runs together.
    disk : int or None
        Bytes for all run folders together.
    waiting : int
        Runs that may be queued.
    """

    root: str
    allow: tuple[str, ...] = ()
    token: str = field(default="", repr=False)
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    scheduler: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750
    concurrent: int = 1
    memory: int = field(default_factory=lambda: int(memory_bytes() * DEFAULT_SHARE))
    disk: int | None = None
    waiting: int = 1000

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} can be reached from other machines, which needs a token: give --token-file FILE, "
                f"or set {TOKEN}"
            )
        if self.token and len(self.token) < _SHORTEST:
            raise ValueError(f"the token has {len(self.token)} of {_SHORTEST} letters: openssl rand -hex 32")
        if self.share < 1 << 28:
            raise ValueError(
                f"{show_size(self.memory)} for {self.concurrent} runs at a time leave {show_size(self.share)} each; "
                "256 MiB are the least: raise --memory or lower --concurrent"
            )
        Places(self.allow)

    @property
    def share(self) -> int:
        """Bytes that a run may take where its job does not say."""
        return self.memory // self.concurrent

    def is_token(self, given: str) -> bool:
        """Return whether ``given`` is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(_hash(given), _hash(self.token))

    @property
    def session(self) -> str:
        """What a browser that has shown the token keeps: it can be made from the token, not the token from it."""
        return hmac.new(self.token.encode(), b"tilecov session", hashlib.sha256).hexdigest()

    def is_session(self, given: str) -> bool:
        """Return whether ``given`` is the value that a browser keeps."""
        return hmac.compare_digest(_hash(given), _hash(self.session))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


@lru_cache(maxsize=64)  # asked for every request
def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the token in ``file``, or in the environment; empty where there is none.

    Raises
    ------
    ValueError
        Where the file is empty, or others may read it.
    """
    if file is None:
        return environment.get(TOKEN, "").strip()
    path = Path(file)
    # Docker's and Kubernetes' secrets are files of the host's modes, which only the container sees.
    if os.name == "posix" and not path.is_relative_to(SECRETS) and path.stat().st_mode & 0o077:
        raise ValueError(f"{file} can be read by others than its owner; chmod 600 {file}")
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"{file} is empty; write a token into it: openssl rand -hex 32 > {file}")
    return token
