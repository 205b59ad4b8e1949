"""The fsspec file system that a URL lies on."""

import inspect
from collections.abc import Mapping
from typing import Any

import fsspec

from .patience import CONNECT_SECONDS, READ_SECONDS, share_patience
from .redact import redact_url

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "http": "http",
    "https": "http",
}

_S3_LIMITS = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
"""botocore's own minute for each try would make an hour of a store that does not answer."""

_OF_THE_WEB = frozenset(
    "allow_redirects auth block_size cache_options cache_type client_kwargs cookies encoded get_client headers "  # noqa: SIM905
    "listings_expiry_time max_paths max_redirects params proxy proxy_auth proxy_headers same_scheme simple_links "
    "size_policy skip_instance_cache ssl timeout use_listings_cache".split()
)
"""What fsspec's file system of web servers takes, and aiohttp's requests."""

_NO_ACCOUNT = (
    "{url}: no Azure account is named; give account_name and account_key, sas_token or connection_string in "
    "--storage-options, or AZURE_STORAGE_ACCOUNT_NAME and its like in the environment"
)


def with_limits(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``options`` the file system of ``url`` takes, with time limits for requests where they set none.

    A job may read web servers and a store: neither takes what is the other's, and no web server needs a store's keys.
    """
    if url.startswith(("http://", "https://")):
        return _of_the_web(options)
    options = {name: value for name, value in options.items() if name != "allow_redirects"}
    if url.startswith(("gs://", "gcs://")):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"requests_timeout": limits, **options}
    if not url.startswith(("s3://", "s3a://")):
        return options
    return {**options, "config_kwargs": {**_S3_LIMITS, **options.get("config_kwargs", {})}}


def _of_the_web(options: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name in _OF_THE_WEB}
    if "client_kwargs" in found:  # a word of s3fs too, for another client
        import aiohttp

        known = inspect.signature(aiohttp.ClientSession).parameters
        found["client_kwargs"] = {name: value for name, value in found["client_kwargs"].items() if name in known}
    return found


def protocols_of(fs: Any) -> set[str]:
    """Return the protocols that an fsspec file system answers to."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the file system of ``url`` and the path on it.

    Raises
    ------
    ValueError
        Where the protocol is unknown, or its package is not installed: it names what to install.
    """
    protocol = url.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url, **with_limits(url, options))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way = f"pip install 'tilecov[{extra}]'" if extra else str(error)
        raise ValueError(f"{redact_url(url)}: {protocol}:// needs a package that is not installed; {way}") from error
    except ValueError as error:
        if "Must provide either a connection_string" in str(error):
            raise ValueError(_NO_ACCOUNT.format(url=redact_url(url))) from error
        if "Protocol not known" not in str(error):
            raise
        raise ValueError(
            f"{redact_url(url)}: {protocol}:// is not known; give a path, s3://, gs://, az:// or another of fsspec's"
        ) from error
    share_patience(fs)
    return fs, path
