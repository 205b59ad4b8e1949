"""The planner: pure, printable, and refusing before anything runs."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compiled import NO_COMPILER
from conftest import random_images, write_tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tilecov.pipeline import Job, plan, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.costs import READ_SECONDS, Costs, tile_of, tiles_of, upper_entries
from tilecov.pipeline.errors import DoesNotFitError
from tilecov.pipeline.facts import DatasetFacts, inspect
from tilecov.pipeline.machine import Machine
from tilecov.pipeline.plan import Plan, make_groups, make_units
from tilecov.pipeline.png import decodes_batches
from tilecov.pipeline.svd import kernels
from tilecov.storage.listing import Shard

GIB = 1 << 30
MACHINE = Machine(
    cores=2, memory=24 * GIB, baseline=250 << 20, flops32=1.2e11, flops64=6e10, disk=5e8, disk_free=10**12
)


def facts(samples: int = 50_000, shards: int = 50, kind: Any = "uint8") -> DatasetFacts:
    listed = tuple(Shard(f"/data/{index}.tar", samples // shards * 4000, "1") for index in range(shards))
    return DatasetFacts(listed, kind, samples, pixels=64 * 64, encoded=3000, decode_seconds=1e-4)


def job(**fields: Any) -> Job:
    return Job(**{"shards": ("x.tar",), "resolution": 64, "rank": 0, **fields})


def test_planning_is_pure() -> None:
    assert plan(job(), facts(), MACHINE) == plan(job(), facts(), MACHINE)


@pytest.mark.parametrize("memory", ["1GiB", "2GiB", "8GiB", None])
@pytest.mark.parametrize("resolution", [8, 64, 128, 256])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_stage_passes_the_memory(memory: Any, resolution: int, workers: int) -> None:
    planned = plan(job(resolution=resolution, memory=memory, workers=workers), facts(), MACHINE)
    assert planned.peak <= planned.memory
    if memory is None:
        assert planned.memory <= 0.8 * MACHINE.memory / workers
    else:
        assert planned.memory == job(memory=memory).memory


def test_pinned_blocks_count_whole_and_in_powers_of_two() -> None:
    few = facts(samples=100, shards=2)
    there, here = (Costs(job(resolution=40), few, replace(MACHINE, device=device)) for device in ("cuda", "cpu"))
    assert here.blocks(1024) == 126 * 4800  # no more samples than there may be
    assert there.blocks(1024) == 2 * (8 << 20)  # of 1,024 x 4,800 bytes each


def test_one_thread_of_each_process_reads() -> None:
    machine = replace(MACHINE, cores=64)
    quick = replace(facts(), decode_seconds=1e-6)
    one, two = (Costs(job(workers=workers), quick, machine).decode_seconds() for workers in (1, 2))
    assert one == 2 * two == 50_000 * READ_SECONDS
    four = replace(MACHINE, cores=4)
    assert Costs(job(), facts(), four).decode_seconds() == pytest.approx(50_000 * (1e-4 + READ_SECONDS) / 4)


@pytest.mark.parametrize(
    ("batched", "encoded", "samples", "forked"),
    [
        (0.0, 3000, 50_000, True),
        (0.49, 3000, 50_000, True),
        (0.5, 3000, 50_000, False),  # C decodes them, without the interpreter's lock
        (1.0, 3000, 50_000, False),
        (0.0, 1 << 20, 50_000, False),  # large pictures, decoded by libraries that do not hold it either
        (0.0, 3000, 500, False),
    ],
)
def test_decoders_are_processes_where_many_small_pictures_are_decoded_one_by_one(
    batched: float, encoded: int, samples: int, forked: bool
) -> None:
    found = replace(facts(samples), batched=batched, encoded=encoded)
    assert plan(job(decode_threads=2), found, MACHINE).forked == forked
    assert not plan(job(decode_threads=1), found, MACHINE).forked


@pytest.mark.parametrize(("kinds", "batched"), [("uu", 1.0), ("pp", 0.0), ("ppuu", 0.5)])
def test_what_c_decodes_is_seen_in_the_first_samples(tmp_path: Path, kinds: str, batched: float) -> None:
    """Usual pictures, and ones with a palette, which Pillow decodes."""
    if not decodes_batches():
        batched = 0.0
    files = []
    for index, kind in enumerate(kinds):
        picture, sink = Image.fromarray(random_images(1, 8, seed=index)[0]), io.BytesIO()
        (picture.quantize() if kind == "p" else picture).save(sink, "PNG")
        files.append((f"{index}.png", sink.getvalue()))
    path = write_tar(tmp_path / "a.tar", files)
    found = inspect(Job(shards=(str(path),), resolution=8, channels=3))
    assert found.batched == batched
    assert found.decode_seconds > 0


def test_less_memory_turns_resident_into_staged_and_then_into_a_refusal() -> None:
    strategies = []
    for memory in (4096, 2048, 1024, 768, 640, 512):
        planned = plan(job(resolution=64, memory=memory << 20), facts(), MACHINE)
        strategies.append(planned.strategy)
    assert strategies == sorted(strategies)  # resident comes before staged
    assert set(strategies) == {"resident", "staged"}
    with pytest.raises(DoesNotFitError, match=r"300\.0 MiB are allowed; raise --memory to"):
        plan(job(resolution=64, memory=300 << 20), facts(), MACHINE)


def test_a_refusal_names_a_memory_that_is_enough() -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        plan(job(resolution=64, rank="full", memory="1GiB", svd="direct"), facts(), MACHINE)
    needed = str(refusal.value).split("raise --memory to ")[1].split(" or")[0]
    assert plan(job(resolution=64, rank="full", memory=float_up(needed), svd="direct"), facts(), MACHINE)


def float_up(size: str) -> str:
    number, unit = size.split()
    return f"{float(number) + 0.1:.1f}{unit}"


def test_lapack_computes_in_what_is_stored_and_in_float64_where_that_is_quick() -> None:
    assert plan(job(rank="full", svd="direct"), facts(), MACHINE).precision == "float32"
    assert plan(job(rank="full", svd="direct", dtype="float64"), facts(), MACHINE).precision == "float64"
    assert plan(job(rank="full", resolution=22), facts(), MACHINE).precision == "float64"
    few = facts(samples=2_000_000)  # so many that --dtype float64 decides by memory alone
    with pytest.raises(DoesNotFitError, match="in float64 needs"):
        plan(job(rank="full", svd="direct", dtype="float64", memory="3GiB"), few, MACHINE)


def test_the_certificate_takes_more_memory_where_there_is_some() -> None:
    """With it U is read once and held, and not read again for every few tile rows."""
    tight, roomy = (plan(job(rank="full", svd="blocked", memory=size), facts(), MACHINE) for size in ("1GiB", "8GiB"))
    assert 256 << 20 <= tight.band_bytes < roomy.band_bytes == 4 * 12_288**2
    for planned in (tight, roomy):
        assert planned.stages[-1].name == "certificate"
        assert planned.stages[-1].memory <= planned.memory


def test_stages_keep_what_they_free_only_where_there_is_room_for_it() -> None:
    roomy = plan(job(rank=512), facts(), MACHINE)
    kept = {stage.name for stage in roomy.stages if stage.keeps_freed}
    assert kept == {"merge", "statistics", "spectrum", "artifacts", "certificate"}
    tight = plan(job(rank=512, memory=roomy.peak), facts(), MACHINE)
    assert {stage.name for stage in tight.stages if stage.keeps_freed} == kept - {"spectrum"}
    assert Plan.load(json.loads(json.dumps(tight.as_dict()))) == tight


def test_blocks_are_read_ahead_where_that_holds_nothing_up() -> None:
    """Beside a network's pauses, an accelerator, or threads that wait for none; memory is planned for it."""
    local, apart = plan(job(), facts(), MACHINE), plan(job(), facts(), replace(MACHINE, apart=True))
    assert (local.blocks, apart.blocks) == (1, 2)
    assert apart.stages[0].memory - local.stages[0].memory == local.block_rows * 12_288
    assert plan(job(), facts(), replace(MACHINE, device="cuda")).blocks == 2
    far = replace(facts(), shards=tuple(replace(shard, url=f"s3:/{shard.url}") for shard in facts().shards))
    assert plan(job(), far, MACHINE).blocks == 2


def test_lapack_ends_below_32767_columns() -> None:
    with pytest.raises(DoesNotFitError, match=r"32,766 columns and a row has 49,152"):
        plan(job(resolution=128, rank="full", svd="direct"), facts(), MACHINE)


@pytest.mark.parametrize(
    ("wanted", "method"),
    [
        ({"rank": "full", "resolution": 40, "memory": "8GiB"}, "direct"),
        ({"rank": "full", "memory": "8GiB"}, "blocked"),  # direct would fit, takes as long and more memory
        ({"rank": "full", "memory": "1GiB"}, "blocked"),
        ({"rank": "full", "resolution": 128}, "blocked"),  # past LAPACK's end
        ({"rank": 256, "memory": "8GiB"}, "randomized"),
        ({"rank": "energy=0.99", "memory": "8GiB"}, "randomized"),
        ({"rank": "full", "resolution": 16}, "direct"),
        ({"rank": "full", "resolution": 256, "samples": 2000}, "dual"),
        ({"rank": 0}, "none"),
    ],
)
def test_auto_chooses_by_memory_samples_rank_and_says_why(wanted: dict[str, Any], method: str) -> None:
    chosen = plan(job(**{"resolution": 64, **wanted}), facts(samples=wanted.pop("samples", 50_000)), MACHINE)
    assert chosen.method == method
    assert "\n" not in chosen.reason
    assert chosen.reason.startswith(method if method != "none" else "rank 0")
    assert chosen.peak <= chosen.memory


def test_too_little_disk_is_refused_with_both_sizes() -> None:
    with pytest.raises(DoesNotFitError, match=r"of disk and 1\.0 GiB are free"):
        plan(job(resolution=128), facts(), replace(MACHINE, disk_free=GIB))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 5000), st.integers(1, 5))
def test_units_are_consecutive_and_cover_all_shards(sizes: list[int], target: int, workers: int) -> None:
    units = make_units(sizes, target, workers)
    assert [index for start, stop in units for index in range(start, stop)] == list(range(len(sizes)))
    assert all(start < stop for start, stop in units)


@given(st.integers(1, 40), st.integers(1, 40))
def test_groups_cover_each_upper_tile_once(tiles: int, side: int) -> None:
    found = [(i, j) for left, right in make_groups(tiles, side) for i in range(*left) for j in range(*right) if i <= j]
    assert sorted(found) == [(i, j) for i in range(tiles) for j in range(i, tiles)]


@pytest.mark.parametrize("size", [1, 2, 997, 1536, 1537, 4099, 12_288])
def test_upper_entries_by_counting_tiles(size: int) -> None:
    tile, tiles = tile_of(size), tiles_of(size)
    widths = [min(tile, size - i * tile) for i in range(tiles)]
    assert upper_entries(size) == sum(widths[i] * widths[j] for i in range(tiles) for j in range(i, tiles))


def test_a_plan_survives_json() -> None:
    planned = plan(job(resolution=128, memory="2GiB"), facts(), MACHINE)
    assert Plan.load(json.loads(json.dumps(planned.as_dict()))) == planned


def test_work_doubles_with_rows_and_quadruples_with_columns() -> None:
    flops = {
        (rows, resolution): plan(job(resolution=resolution), facts(rows), MACHINE).stages[0].flops
        for rows in (50_000, 100_000)
        for resolution in (64, 128)
    }
    assert flops[100_000, 64] == 2 * flops[50_000, 64]
    assert 3.7 < flops[50_000, 128] / flops[50_000, 64] < 16.3


@pytest.mark.parametrize("fields", [{"group_by": "cls", "max_groups": 3}, {"augment": "d4"}, {"strategy": "staged"}])
def test_every_way_counts_its_memory(fields: dict[str, Any]) -> None:
    plain = plan(job(memory="8GiB"), facts(), MACHINE)
    planned = plan(job(memory="8GiB", **fields), facts(), MACHINE)
    assert planned != plain
    if "group_by" in fields:
        assert planned.stages[0].memory >= plain.stages[0].memory + 2 * 4 * upper_entries(12_288)


def test_the_command_shows_the_plan_and_does_nothing(
    tmp_path: Path, shards: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = shards(count=20, resolution=4)
    before = sorted(tmp_path.rglob("*"))
    assert run_safely(["plan", *paths, "--resolution", "4"]) == 0
    shown = capsys.readouterr().out
    for word in ("moments", "merge", "statistics", "spectrum", "certificate", "memory", "requests", "MiB", "direct"):
        assert word in shown
    assert run_safely(["plan", *paths, "--resolution", "4", "--json"]) == 0
    assert Plan.load(json.loads(capsys.readouterr().out)).size == 48
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_keeps_predicted_beside_actual(tmp_path: Path, shards: Callable[..., list[str]]) -> None:
    manifest = run(Job(shards=tuple(shards()), resolution=4, out=str(tmp_path / "run")))
    for stage in manifest["stages"].values():
        assert stage["seconds"] >= 0
        assert stage["peak_memory"] > 10**7
        assert set(stage["predicted"]) == {"seconds", "peak_memory"}


def test_a_run_shows_its_plan_first(
    tmp_path: Path, shards: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_safely(["run", *shards(), "--resolution", "4", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert shown.err.index("in all") < shown.err.index("moments: done")
    assert "complete" in shown.out


def test_a_run_is_not_resumed_with_less_memory_than_it_was_planned_for(
    tmp_path: Path, shards: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilecov.pipeline import stages

    fields = {"shards": tuple(shards()), "resolution": 4, "out": str(tmp_path / "run")}

    def stop(context: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "STAGES", {**stages.STAGES, "merge": stop})
        with pytest.raises(KeyboardInterrupt):
            run(Job(**fields))
    with pytest.raises(DoesNotFitError, match="begin anew"):
        run(Job(**fields, memory="50MiB"))
    assert run(Job(**fields, memory="4GiB"))["state"] == "complete"


def test_a_given_sample_count_is_believed(shards: Callable[..., list[str]]) -> None:
    from tilecov.pipeline.facts import inspect

    fields = {"shards": tuple(shards(count=40)), "resolution": 4}
    assert inspect(Job(**fields, samples=123_456)).samples == 123_456
    assert 10 <= inspect(Job(**fields)).samples <= 160


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("rank", [100, 1024, "full"])
def test_slabs_are_as_wide_as_fits_and_enough_for_all_workers(workers: int, rank: Any) -> None:
    planned = plan(job(svd="blocked", rank=rank, workers=workers), facts(), MACHINE)
    wanted = planned.size if rank == "full" else rank
    slabs, columns = -(-wanted // planned.slab), -(-wanted // planned.tile)
    assert slabs >= min(workers, columns)
    assert planned.slab % planned.tile == 0 or planned.slab == min(wanted, planned.tile)
    assert planned.slab <= 8192
    tight = plan(job(svd="blocked", rank=rank, workers=workers, memory="1GiB"), facts(), MACHINE)
    assert tight.slab <= min(planned.slab, 4096)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_band_is_narrow_where_its_tiles_stay_and_c_chases(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("tilecov.pipeline.svd.kernels.compiled", None)
    elif not kernels.compiled:
        pytest.skip(NO_COMPILER)
    sizes = (64, 128)  # 288 MiB of tiles, and 4.5 GiB
    narrow, wide = (plan(job(svd="blocked", rank=500, memory="4GiB", resolution=r), facts(), MACHINE) for r in sizes)
    assert (narrow.band_width, wide.band_width) == (64 if compiled else 128, 128)
