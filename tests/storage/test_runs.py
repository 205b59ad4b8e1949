"""RunFolder: what is saved is loaded, damage is named, and a commit counts whole or not at all."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilecov.storage.objects import Folder
from tilecov.storage.runs import FORMAT, LEDGER, MANIFEST, OtherFormatError, RunFolder, now, versions

quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(codec="utf-8"), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(texts, plain, max_size=4)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(Folder(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


# --- the manifest


@quick
@given(record=records)
def test_a_manifest_is_loaded_as_it_was_saved(run: RunFolder, record: dict[str, Any]) -> None:
    manifest = {**record, "format": FORMAT}
    run.save(manifest)
    assert run.load() == manifest
    assert RunFolder(Folder(run.url)).load() == manifest


def test_a_manifest_is_json_a_person_can_read(run: RunFolder) -> None:
    run.save({"format": FORMAT, "job": {"resolution": 64}})
    text = run.root.read("run.json").decode()
    assert json.loads(text) == {"format": FORMAT, "job": {"resolution": 64}}
    assert text.count("\n") >= 4
    assert text.endswith("}\n")


def test_no_run_is_none(run: RunFolder) -> None:
    assert run.load() is None
    run.root.write("something-else.txt", b"")
    assert run.load() is None
    assert run.root.names() == ["something-else.txt"]  # looking makes nothing


@pytest.mark.parametrize("found", [FORMAT + 1, FORMAT - 1, -1, str(FORMAT), None, "tilecov", [FORMAT]])
def test_another_format_is_refused_by_name(run: RunFolder, found: Any) -> None:
    run.save({"format": found, "job": {}})
    with pytest.raises(OtherFormatError) as refusal:
        run.load()
    message = str(refusal.value)
    assert run.url in message
    assert str(found) in message
    assert str(FORMAT) in message
    assert "--out" in message
    assert isinstance(refusal.value, ValueError)


def test_a_manifest_without_a_format_is_refused(run: RunFolder) -> None:
    run.save({"job": {}})
    with pytest.raises(OtherFormatError):
        run.load()


def test_a_manifest_cut_anywhere_is_damaged(run: RunFolder) -> None:
    run.save({"format": FORMAT, "stages": {"moments": "done"}, "shards": [1, 2, {"a": None}]})
    whole = run.root.read(MANIFEST)
    for length in range(len(whole.rstrip())):
        run.root.write(MANIFEST, whole[:length])
        with pytest.raises(ValueError, match=r"run\.json.*damaged"):
            run.load()


@pytest.mark.parametrize(
    "raw", [b"", b"\x00" * 100, b"\xff\xfe", b"null", b"3", b'"abc"', b"[1, 2]", b"{'a': 1}", b"{} {}"]
)
def test_what_is_no_manifest_is_damaged(run: RunFolder, raw: bytes) -> None:
    run.root.write(MANIFEST, raw)
    with pytest.raises(ValueError, match=r"run\.json.*damaged") as refusal:
        run.load()
    assert not isinstance(refusal.value, OtherFormatError)
    assert run.root.read(MANIFEST) == raw


def test_what_cannot_be_saved_leaves_the_old_manifest(run: RunFolder) -> None:
    run.save({"format": FORMAT, "n": 1})
    for bad in (object(), b"bytes", {1, 2}, 1j):
        with pytest.raises(TypeError):
            run.save({"format": FORMAT, "bad": bad})
    assert run.load() == {"format": FORMAT, "n": 1}
    assert run.root.names() == [MANIFEST]


def test_credentials_are_not_shown() -> None:
    run = RunFolder(Folder("s3://bucket/run", {"secret": "AKIA-hidden"}))
    assert "AKIA" not in repr(run)
    assert run.url == "s3://bucket/run"
    assert run.folder("moments.zarr").options == {"secret": "AKIA-hidden"}


# --- commits


@quick
@given(
    done=st.dictionaries(
        st.text("abc019-_.", min_size=1, max_size=6).filter(lambda t: t.strip(".")), records, max_size=4
    )
)
def test_commits_are_read_by_name(run: RunFolder, done: dict[str, dict[str, Any]]) -> None:
    stage = uuid.uuid4().hex
    assert run.commits(stage) == {}
    for task, record in done.items():
        run.commit(stage, task, record)
    assert run.commits(stage) == done
    assert RunFolder(Folder(run.url)).commits(stage) == done


def test_stages_do_not_mix(run: RunFolder) -> None:
    run.commit("moments", "0000", {"a": 1})
    run.commit("moments-2", "0000", {"a": 2})
    run.commit("mean", "0001", {"a": 3})
    assert run.commits("moments") == {"0000": {"a": 1}}
    assert run.commits("moments-2") == {"0000": {"a": 2}}
    assert run.commits("mean") == {"0001": {"a": 3}}
    assert run.commits("m") == {}


def test_the_first_commit_of_a_task_counts(run: RunFolder) -> None:
    for attempt in range(3):
        assert run.commit("moments", "0000", {"attempt": attempt}) == {"attempt": 0}
    assert run.commits("moments") == {"0000": {"attempt": 0}}


def test_of_many_attempts_at_once_one_counts(run: RunFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda attempt: run.commit("moments", "0000", {"attempt": attempt}), range(8)))
    assert all(record == told[0] for record in told)
    assert run.commits("moments") == {"0000": told[0]}


def test_a_renewed_commit_replaces_the_last(run: RunFolder) -> None:
    for attempt in range(3):
        run.renew("spectrum", "krylov", {"attempt": attempt})
    assert run.commits("spectrum") == {"krylov": {"attempt": 2}}


def test_sweeping_removes_what_no_commit_names(run: RunFolder) -> None:
    kept, dead = run.fresh("moments", "00000"), run.fresh("moments", "00000")
    for name in (f"{kept}/0/0-0", f"{dead}/0/0-0", "work/spectrum/band/panel-1", "work/rows/readme"):
        run.root.write(name, b"x")
    run.commit("moments", "00000", {"prefix": kept})
    run.sweep()
    assert run.root.exists(f"{kept}/0/0-0")
    assert not run.root.exists(f"{dead}/0/0-0")
    assert run.root.exists("work/spectrum/band/panel-1")
    assert run.root.exists("work/rows/readme")
    assert run.commits("moments") == {"00000": {"prefix": kept}}


def test_a_commit_that_fails_does_not_count(run: RunFolder) -> None:
    run.commit("moments", "0000", {"a": 1})
    for task in ("0000", "0001"):
        with pytest.raises(TypeError):
            run.commit("moments", task, {"a": object()})
    assert run.commits("moments") == {"0000": {"a": 1}}


def test_a_forgotten_commit_does_not_count(run: RunFolder) -> None:
    for stage, task in (("moments", "0000"), ("moments", "0001"), ("moments-2", "0000")):
        run.commit(stage, task, {"a": 1})
    run.forget("moments", "0001")
    run.forget("moments", "no-such-task")
    assert run.commits("moments") == {"0000": {"a": 1}}
    run.forget("moments")
    run.forget("no-such-stage")
    assert run.commits("moments") == {}
    assert run.commits("moments-2") == {"0000": {"a": 1}}
    run.commit("moments", "0001", {"a": 2})
    assert run.commits("moments") == {"0001": {"a": 2}}


def test_what_a_crash_left_does_not_count(tmp_path: Path) -> None:
    run = RunFolder(Folder(str(tmp_path)))
    run.commit("moments", "0000", {"a": 1})
    [committed] = tmp_path.rglob("0000.json")
    committed.with_name(".0001.json.0123456789abcdef.tmp").write_text('{"a": ')
    assert run.commits("moments") == {"0000": {"a": 1}}


def test_commits_of_many_workers_all_count(run: RunFolder) -> None:
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait()
        for task in range(worker, 64, 8):
            run.commit("moments", f"{task:04d}", {"worker": worker, "task": task})
            assert f"{task:04d}" in run.commits("moments")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert run.commits("moments") == {f"{task:04d}": {"worker": task % 8, "task": task} for task in range(64)}


def test_a_fresh_folder_was_never_used(run: RunFolder) -> None:
    names = {run.fresh("moments", "0000") for _ in range(1000)}
    assert len(names) == 1000
    for name in list(names)[:5]:
        assert not run.root.exists(name)
        run.folder(name).write("tile", b"1")
    assert run.commits("moments") == {}  # data alone is no commit


# --- the ledger


@quick
@given(lines=st.lists(records, max_size=6))
def test_the_ledger_has_one_line_a_shard(run: RunFolder, lines: list[dict[str, Any]]) -> None:
    run.write_ledger(lines)
    assert run.read_ledger() == lines
    raw = run.root.read(LEDGER)
    assert raw.count(b"\n") == len(lines)
    assert [json.loads(line) for line in raw.split(b"\n")[:-1]] == lines


@pytest.mark.parametrize(
    "key", ["a\nb", "a\u2028b", "a\u0085b", "a\r\nb", "\x1c", "\x00", "ünïcode/名", "\udcff", '"', "\\"]
)
def test_no_key_breaks_a_line(run: RunFolder, key: str) -> None:
    lines: list[dict[str, Any]] = [{"skipped": [{"key": key, "reason": "cut"}]}, {"skipped": []}]
    run.write_ledger(lines)
    assert run.read_ledger() == lines


def test_no_ledger_is_no_lines(run: RunFolder) -> None:
    assert run.read_ledger() == []


def test_a_ledger_replaces_the_one_before_and_a_failed_one_does_not(run: RunFolder) -> None:
    run.write_ledger({"shard": i} for i in range(3))
    run.write_ledger([{"shard": 9}])
    assert run.read_ledger() == [{"shard": 9}]
    with pytest.raises(TypeError):
        run.write_ledger([{"shard": object()}])
    assert run.read_ledger() == [{"shard": 9}]


# --- provenance


def test_versions_name_what_the_numbers_went_through() -> None:
    found = versions()
    assert {"tilecov", "torch", "zarr", "numpy", "imagecodecs", "pillow"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())
    assert json.loads(json.dumps(found)) == found


def test_the_time_is_utc_to_the_second() -> None:
    time = datetime.fromisoformat(now())
    assert time.utcoffset() == timedelta(0)
    assert time.microsecond == 0
    assert abs(datetime.now(UTC) - time) < timedelta(seconds=5)
