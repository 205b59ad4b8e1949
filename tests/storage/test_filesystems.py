"""Which package a protocol needs, and limits of time."""

import sys

import pytest

from tilecov.storage.filesystems import file_system, with_limits


def test_a_protocol_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"^gs://bucket/x: gs:// needs a package.*; pip install 'tilecov\[gcs\]'$"):
        file_system("gs://bucket/x", {})


def test_azure_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ValueError, match=r"^az://c/x: az:// needs a package.*; pip install 'tilecov\[azure\]'$"):
        file_system("az://c/x", {})


def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    with pytest.raises(ValueError, match=r"^az://c/x: no Azure account is named; give account_name"):
        file_system("az://c/x", {"anon": True})


def test_an_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"^nosuch://x/y: nosuch:// is not known; give a path"):
        file_system("nosuch://x/y", {})


def test_requests_to_s3_have_limits_of_time_that_the_user_may_set() -> None:
    assert with_limits("s3://b", {})["config_kwargs"] == {"connect_timeout": 10, "read_timeout": 20}
    limits = with_limits("s3://b", {"key": "k", "config_kwargs": {"read_timeout": 5}})
    assert limits == {"key": "k", "config_kwargs": {"connect_timeout": 10, "read_timeout": 5}}
    assert with_limits("memory://b", {"a": 1}) == {"a": 1}


def test_web_servers_and_stores_are_told_what_is_theirs() -> None:
    options = {
        "key": "k", "secret": "s", "endpoint_url": "http://store", "allow_redirects": False, "headers": {"X": "y"},
        "client_kwargs": {"region_name": "r", "trust_env": True},
    }  # fmt: skip
    web = {"allow_redirects": False, "headers": {"X": "y"}, "client_kwargs": {"trust_env": True}}
    assert with_limits("https://h/x.tar", options) == web
    for store in ("s3://b", "gs://b", "az://b", "memory://b"):
        assert "allow_redirects" not in with_limits(store, options)
        assert with_limits(store, options)["secret"] == "s"
