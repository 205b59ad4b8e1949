"""The fsspec file system that a URL lies on."""

from collections.abc import Mapping
from typing import Any

import fsspec

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

_S3_LIMITS = {"connect_timeout": 10, "read_timeout": 20}
"""Seconds; botocore's own minute for each try would make an hour of a store that does not answer."""


def with_limits(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` with time limits for requests, where they set none."""
    if not url.startswith(("s3://", "s3a://")):
        return dict(options)
    return {**options, "config_kwargs": {**_S3_LIMITS, **options.get("config_kwargs", {})}}


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
        if "Protocol not known" not in str(error):
            raise
        raise ValueError(
            f"{redact_url(url)}: {protocol}:// is not known; give a path, s3://, gs://, az:// or another of fsspec's"
        ) from error
    return fs, path
