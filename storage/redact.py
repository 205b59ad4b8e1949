"""Credentials taken out of text: what goes to people and files holds ``***`` in their place."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_SHORTEST = 6  # letters; a shorter value is a flag or a region, and would be hidden inside of other words

# A bare name before "@" is a container, as in abfs://container@account, but never on http, where it is a token.
_USER = re.compile(r"\b((?!github:|git:)[a-z][a-z0-9+.\-]*://)[^\s/?#:]*:[^\s/?#]*@", re.IGNORECASE)
_TOKEN_AS_USER = re.compile(r"\b(https?://)[^\s/?#]+@", re.IGNORECASE)

_QUERY = re.compile(r"\?[^\s?=&'\"<>]+=[^\s'\"<>#]*")
_SIGNING = re.compile(
    r"x-(amz|goog)-.*|signature|sig|.*token|.*secret|.*passw(or)?d|pwd|api[_-]?key|.*access_?key(_?id)?|googleaccessid"
    r"|credential|policy|key-pair-id|authorization|auth|code|expires",
    re.IGNORECASE,
)
# The other parts of an Azure signature: each time a URL is signed, they change too.
_BESIDE_SIG = frozenset(
    "sv|st|se|sr|sp|spr|sip|ss|srt|sdd|ses|saoid|suoid|scid|skoid|sktid|skt|ske|sks|skv".split("|")  # noqa: SIM905
)

_ASSIGNED = re.compile(
    r"((?:secret|passw(?:or)?d|token|sas|(?:account|access|private|api|shared\w*)_?key(?!_?id)|sharedaccesssignature)"
    r"[\"']?\s*[=:]\s*[\"']?|\bbearer\s+)([^\s\"',;&]{6,})",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|pwd|token|credential|connection_?string|(account|access|api|private|shared)_?key|"
    r"(^|_)sas(_|$)|signature|^key$|^auth|_auth$|cookie",
    re.IGNORECASE,
)
_FOLDERS = {"PWD", "OLDPWD"}
"""Variables of every shell that hold where it is, and no password."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return ``text`` with ``***`` in place of credentials.

    Parameters
    ----------
    text : str
        A URL, or anything with URLs in it: user names and passwords, and the values that sign a query, are hidden. So
        are values that are said to be a secret, as in ``AccountKey=...``.
    secrets : iterable of str
        Values to hide wherever they stand, as `secrets_of` finds them.
    """
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, HIDDEN)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", _USER.sub(rf"\1{HIDDEN}@", text))
    text = _QUERY.sub(lambda found: _redact_query(found[0]), text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def _redact_query(query: str) -> str:
    parts = query[1:].split("&")
    names = {part.partition("=")[0].lower() for part in parts}
    extra = _BESIDE_SIG if "sig" in names else frozenset()
    return "?" + "&".join(_redact_part(part, extra) for part in parts)


def _redact_part(part: str, extra: frozenset[str]) -> str:
    name, equals, value = part.partition("=")
    if not value or not (_SIGNING.fullmatch(name) or name.lower() in extra):
        return part
    after = value[len(value.rstrip(":;,.)")) :]  # a sentence goes on behind the URL
    return f"{name}{equals}{HIDDEN}{after}"


def redact_url(url: str) -> str:
    """Return a URL by which its file is known: the same whoever signs it and whenever. A path stays as it is."""
    return redact(url) if "://" in url else url


def has_query(url: str) -> bool:
    """Return whether the ``?`` in ``url`` begins a query, and is not the wildcard of a glob."""
    head, mark, _ = url.partition("?")
    is_web = head.lower().startswith(("http://", "https://")) and bool(_QUERY.search(url))
    return bool(mark) and (is_web or redact_url(url).partition("?")[2] != url.partition("?")[2])


def secrets_of(*settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the values in ``settings`` (fsspec's options, the environment) whose names say that they are secret."""
    found = {value for mapping in settings for value in _secret_values(mapping, known=False)}
    found |= {inner for value in found for inner in _parts(value)}
    found |= {quote(value, safe="") for value in found}
    return frozenset(value for value in found if len(value) >= _SHORTEST)


def _parts(value: str) -> Iterator[str]:
    """Return what of a secret may be shown by itself: a token after its kind, a key in a connection string."""
    yield from value.split()[-1:]
    yield json.dumps(value)[1:-1]  # as a private key of many lines stands in JSON
    if ";" in value:
        fields = dict(part.partition("=")[::2] for part in value.split(";"))
        yield from _secret_values(fields, known=False)


def _secret_values(value: Any, *, known: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            is_secret = name not in _FOLDERS and bool(_SECRET_NAME.search(str(name)))
            yield from _secret_values(inner, known=known or is_secret)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secret_values(inner, known=known)
    elif known and isinstance(value, str | int) and not isinstance(value, bool):
        yield str(value)


def what_is_said(error: BaseException) -> str:
    """Return the text of an error, without the XML in which Azure's client says all of it again."""
    return str(error).partition("\nContent: <")[0]


def without_secrets(error: Exception) -> Exception:
    """Return ``error``, or one whose text holds no credential; an exception of a store's own class becomes an OSError.

    What may be returned as it is: exceptions of Python itself, and those that are an OSError or ValueError.
    """
    text = str(error)
    clean = redact(text)
    is_builtin = type(error).__module__ == "builtins"
    if clean == text and (is_builtin or isinstance(error, OSError | ValueError | RuntimeError)):
        return error
    if isinstance(error, OSError) and is_builtin:
        return type(error)(clean)
    if isinstance(error, ValueError):
        return ValueError(clean)
    return OSError(f"{type(error).__name__}: {' '.join(redact(what_is_said(error)).split())}")
