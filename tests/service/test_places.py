"""No URL leads out of the prefixes that the operator allows, however it is written."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecov.pipeline.service.places import (
    MOST_URLS,
    Place,
    Places,
    RefusedUrlError,
    count_braces,
)
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.patterns import expand


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "a.tar").write_bytes(b"x")
    (tmp_path / "data" / "inner" / "b.tar").write_bytes(b"x")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.tar").write_bytes(b"x")
    return tmp_path / "data"


WAYS_OUT = [
    "/etc/passwd",
    "{data}/../secret/s.tar",
    "{data}/./../secret/s.tar",
    "{data}/x/../../secret/s.tar",
    "{data}2/a.tar",
    "{data}x",
    "{up}/secret/s.tar",
    "{up}/{{data,secret}}/s.tar",
    "{data}/{{.,..}}/secret/s.tar",
    "{data}/{{,.}}./../secret/s.tar",
    "{data}/{{a,../secret/s}}.tar",
    "{up}/*/s.tar",
    "{up}/[s]ecret/s.tar",
    "{up}/secre?/s.tar",
    "{data}/{{x}}.tar",
    "{data}/a:{{:,x}}:/etc/passwd",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://{up}/secret/s.tar",
    "file://localhost{data}/a.tar",
    "file:/etc/passwd",
    "file:etc/passwd",
    "local:///etc/passwd",
    "data/a.tar",
    "./a.tar",
    "~/a.tar",
    "~root/a.tar",
    "simplecache::file:///etc/passwd",
    "filecache::http://127.0.0.1/x.tar",
    "zip://x.tar::file:///etc/x.zip",
    "{data}/a.tar::/etc/passwd",
    "{data}/a.tar::simplecache::s3://b/c",
    "reference://x",
    "pipe:cat /etc/passwd",
    "pipe:cat {data}/a.tar",
    "github://o:r@/x.tar",
    "sftp://host/x.tar",
    "ftp://host/x.tar",
    "memory://x.tar",
    "{data}/${{HOME}}/a.tar",
    "{data}/a.tar\n/etc/passwd",
    "{data}/a.tar\0",
    "{data}\\..\\secret\\s.tar",
    " /etc/passwd",
    "",
    "/",
    "//etc/passwd",
    "s3://other/x.tar",
    "s3://bucket/allowedx/x.tar",
    "s3://bucket/allowed/../x.tar",
    "s3://bucket//allowed/x.tar",
    "s3://buck{{et,et2}}/x.tar",
    "s3://key:secret@bucket/allowed/x.tar",
    "s3://BUCKET/allowed/x.tar",
    "gs://bucket/allowed/x.tar",
    "http://data.example/x.tar",
    "https://data.example/other/x.tar",
    "https://data.example:8443/sets/x.tar",
    "https://data.example.evil.com/sets/x.tar",
    "https://data.example@evil.com/sets/x.tar",
    "https://evil.com#@data.example/sets/x.tar",
    "https://data.example/sets/../other/x.tar",
    "https://data.example/sets/%2e%2e/other/x.tar",
    "https://data.example/sets/%2E%2E%2Fother/x.tar",
    "https://data.example/sets/%252e%252e/other/x.tar",
    "https://data.example/sets/..%2fother/x.tar",
    "https://data.example/sets/x.tar?url=http://169.254.169.254/",
    "https://data.example/sets/x.tar#y",
    "https://user:password@data.example/sets/x.tar",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/x.tar",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://127.0.0.1/x.tar",
    "x" * 3000,
]


@pytest.mark.parametrize("url", WAYS_OUT)
def test_ways_out_are_refused(data: Path, url: str) -> None:
    places = Places([str(data), "s3://bucket/allowed", "https://data.example/sets"])
    with pytest.raises(RefusedUrlError):
        places.check([url.format(data=data, up=data.parent)])


def test_what_is_below_a_prefix_is_taken_in_its_one_way_to_be_written(data: Path) -> None:
    places = Places([f"{data}/", "s3a://bucket/allowed/", "HTTPS://Data.Example/sets/"])
    given_and_found = {
        f"{data}/a.tar": f"{data}/a.tar",
        f"file://{data}/a.tar": f"{data}/a.tar",
        f"{data}//inner/b.tar": f"{data}/inner/b.tar",
        f"{data}/*.tar": f"{data}/*.tar",
        str(data): str(data),
        f"{data}/not yet there.tar": f"{data}/not yet there.tar",
        "S3://bucket/allowed/x.tar": "s3://bucket/allowed/x.tar",
        "https://DATA.example/sets/x.tar": "https://data.example/sets/x.tar",
    }
    assert places.check(list(given_and_found)) == list(given_and_found.values())
    assert places.check([f"{data}/{{a,b}}{{0..2}}.tar"]) == [f"{data}/{x}{n}.tar" for x in "ab" for n in range(3)]


def test_links_that_lead_out_are_refused(data: Path) -> None:
    (data / "link.tar").symlink_to(data.parent / "secret" / "s.tar")
    (data / "folder").symlink_to(data.parent / "secret")
    (data / "back.tar").symlink_to(data / "a.tar")
    places = Places([str(data)])
    for url in ("link.tar", "folder/s.tar", "folder/*.tar", "folder"):
        with pytest.raises(RefusedUrlError):
            places.check([f"{data}/{url}"])
    assert places.check([f"{data}/back.tar"])
    places.check([f"{data}/*.tar"])  # a glob says nothing yet; what it comes to does
    with pytest.raises(RefusedUrlError, match="link"):
        places.check_found(list_shards([f"{data}/*.tar"]))


@pytest.mark.parametrize("name", ["a[1].tar", "a*.tar", "a?.tar"])
def test_found_names_that_would_be_read_as_patterns_are_refused(data: Path, name: str) -> None:
    (data / name).write_bytes(b"x")
    (data.parent / "secret" / "a1.tar").write_bytes(b"x")
    (data / "a1.tar").symlink_to(data.parent / "secret" / "a1.tar")  # what the name would be read as
    with pytest.raises(RefusedUrlError, match="read as a pattern"):
        Places([str(data)]).check_found([Shard(f"{data}/{name}", 1, "")])
    (data / "we[i]rd").mkdir()
    with pytest.raises(RefusedUrlError, match="rename"):
        Places([str(data)]).check_found([Shard(f"{data}/we[i]rd/a.tar", 1, "")])


def test_a_prefix_that_is_a_link_allows_what_it_leads_to(data: Path) -> None:
    link = data.parent / "by link"
    link.symlink_to(data)
    assert Places([str(link)]).check([f"{link}/a.tar"])


def test_listings_that_name_other_places_are_refused(data: Path) -> None:
    places = Places(["https://data.example/sets"])
    with pytest.raises(RefusedUrlError):
        places.check_found([Shard("https://evil.com/x.tar", 1, "")])
    with pytest.raises(RefusedUrlError):
        places.check_found([Shard("https://data.example/sets/x.tar", 1, "", "http://169.254.169.254/x.tar")])


def test_nothing_is_allowed_where_the_operator_says_nothing(data: Path) -> None:
    with pytest.raises(RefusedUrlError, match="none"):
        Places([]).check([f"{data}/a.tar"])


@pytest.mark.parametrize(
    "prefix",
    ["/", "s3://", "https://", "relative", "/data/*", "/d/{a,b}", "/data/../etc", "http://169.254.169.254/", "a::b",
     "http://[fd00:ec2::254]/", "https://user:word@host/", "http://2852039166", "http://0xa9fea9fe:80/",
     "http://169.254.43518", "http://0251.0376.0251.0376/x", "http://[64:ff9b::a9fe:a9fe]:8080/",
     "http://metadata.google.internal", "http://METADATA.google.internal.:80/computeMetadata"],
)  # fmt: skip
def test_prefixes_that_allow_too_much_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="--allow"):
        Places([prefix])


@pytest.mark.parametrize(
    "bomb", ["/d/{0..999999999999}.tar", "/d/" + "{0..9}" * 12, "/d/" + "{a,b}" * 40, "/d/{0..1" + "0" * 1500 + "}"]
)
def test_braces_are_counted_before_they_are_expanded(bomb: str) -> None:
    with pytest.raises(RefusedUrlError, match="more than"):
        Places(["/d"]).check([bomb])


def test_the_shards_of_all_patterns_are_counted() -> None:
    with pytest.raises(RefusedUrlError, match="more than"):
        Places(["/d"]).check([f"/d/{{1..{MOST_URLS - 1}}}", "/d/{a,b}"])


@given(st.text(alphabet="ab{},.0123456789", max_size=24))
def test_the_count_of_braces_is_never_too_small(pattern: str) -> None:
    counted = count_braces(pattern)
    if counted <= 5000:
        try:
            found = len(expand(f"/{pattern}"))
        except ValueError:
            return
        assert found <= counted


@given(st.text(max_size=40), st.sampled_from(["", "file://", "/srv/data/", "s3://bucket/", "https://h/"]))
def test_whatever_is_taken_is_below_a_prefix(text: str, head: str) -> None:
    places = Places(["/srv/data", "s3://bucket/ok", "https://h/ok"])
    try:
        found = places.check([head + text])
    except RefusedUrlError:
        return
    for url in found:
        assert url == Place.parse(url).url
        if url.startswith("/"):
            assert os.path.normpath(url).startswith("/srv/data")
        else:
            assert url.startswith(("s3://bucket/ok", "https://h/ok"))
            assert ".." not in url.split("/")
