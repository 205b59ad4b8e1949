"""Patterns mean what they mean to webdataset."""

import pytest
import webdataset as wds

from tilecov.storage.patterns import expand


@pytest.mark.parametrize(
    ("patterns", "urls"),
    [
        (["a-{000..003}.tar"], ["a-000.tar", "a-001.tar", "a-002.tar", "a-003.tar"]),
        (["s3://b/{x,y}/{1..2}.tar"], ["s3://b/x/1.tar", "s3://b/x/2.tar", "s3://b/y/1.tar", "s3://b/y/2.tar"]),
        (["b.tar::a-{0..1}.tar", "b.tar"], ["b.tar", "a-0.tar", "a-1.tar", "b.tar"]),
        (["*.tar", "a{x}.tar"], ["*.tar", "a{x}.tar"]),
        ("one-{0..1}.tar", ["one-0.tar", "one-1.tar"]),
        ([], []),
    ],
)
def test_expand(patterns: list[str] | str, urls: list[str]) -> None:
    assert expand(patterns) == urls


@pytest.mark.parametrize("pattern", ["a-{000..010..5}.tar", "{b,a}-{1..3}.tar::c.tar", "plain.tar", "a-{z..x}.tar"])
def test_expand_equals_webdataset(pattern: str) -> None:
    assert expand([pattern]) == wds.SimpleShardList(pattern).urls


def test_expand_reads_webdataset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_ROOT", "s3://bucket")
    assert expand(["${ROOT}/{0..1}.tar"]) == ["s3://bucket/0.tar", "s3://bucket/1.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("pipe:cat a.tar", "would run a shell"),
        (" PIPE:rm -r x", "would run a shell"),
        ("a.tar::pipe:cat b.tar", "'pipe:cat b.tar' would run a shell"),
        ("{pipe:cat,x}-a.tar", "would run a shell"),
        ("a.tar::", "empty"),
        ("", "empty"),
        ("a-{0..3.tar", r"'a-\{0..3.tar' cannot be expanded: Unbalanced braces"),
        ("${NOT_SET_ANYWHERE}/a.tar", "cannot be expanded: .*NOT_SET_ANYWHERE"),
    ],
)
def test_expand_refuses(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(["fine.tar", pattern])
