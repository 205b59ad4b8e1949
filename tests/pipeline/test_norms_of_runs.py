"""The sums of norms in finished moments: by any strategy, extended, merged, subtracted, grouped and augmented."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import npy, random_images, rows_of, write_shards, write_tar
from rowsets import norms_of

from tilecov.pipeline import Job, run
from tilecov.pipeline.merge import merge
from tilecov.pipeline.momentstore import MomentsStore
from tilecov.pipeline.norms import Norms
from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError
from tilecov.storage.runs import RunFolder
from tilecov.storage.tiles import open_group, write_vector

IMAGES = random_images(30, 4)
ROWS = rows_of(IMAGES)


def norms_in(path: Path, inside: str = "") -> Norms:
    found = MomentsStore.open(RunFolder(Folder(str(path))), inside).norms
    assert found is not None
    return found


def same(left: Norms, right: Norms) -> bool:
    return left.fourth == right.fourth and left.third.tolist() == right.third.tolist()


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_runs_that_are_extended_merged_and_subtracted(tmp_path: Path, strategy: Any) -> None:
    first, second, third = write_shards(tmp_path / "shards", IMAGES, 3)
    job = {"resolution": 4, "rank": 0, "strategy": strategy}
    some = run(Job(shards=(str(first),), out=str(tmp_path / "some"), **job))["dataset"]["used"]
    run(
        Job(
            shards=(str(first), str(second), str(third)),
            out=str(tmp_path / "all"),
            extend=str(tmp_path / "some"),
            **job,
        )
    )
    run(Job(shards=(str(second), str(third)), out=str(tmp_path / "rest"), **job))
    merge([str(tmp_path / "some"), str(tmp_path / "rest")], str(tmp_path / "merged"))
    merge([str(tmp_path / "all")], str(tmp_path / "subtracted"), subtract=[str(tmp_path / "some")])
    assert same(norms_in(tmp_path / "some"), norms_of(ROWS[:some]))
    assert same(norms_in(tmp_path / "all"), norms_of(ROWS))
    assert same(norms_in(tmp_path / "merged"), norms_of(ROWS))
    assert same(norms_in(tmp_path / "subtracted"), norms_of(ROWS[some:]))


def test_groups_and_symmetries(tmp_path: Path) -> None:
    samples = [(f"{'ab'[i % 2]}{i}.npy", npy(row)) for i, row in enumerate(ROWS)]
    shard = write_tar(tmp_path / "s.tar", samples)
    run(Job(shards=(str(shard),), resolution=4, rank=0, out=str(tmp_path / "run"), group_by="^(.)", augment="hflip"))
    assert same(norms_in(tmp_path / "run"), norms_of(ROWS))
    assert same(norms_in(tmp_path / "run", "groups/b"), norms_of(ROWS[1::2]))
    flipped = rows_of(np.ascontiguousarray(IMAGES[:, :, ::-1]))
    assert same(norms_in(tmp_path / "run", "augmented"), norms_of(np.concatenate([ROWS, flipped])))


def test_float_rows_have_none_and_damage_is_found(tmp_path: Path) -> None:
    for name, rows in (("floats", ROWS.astype(np.float32)), ("bytes", ROWS)):
        shard = write_tar(tmp_path / f"{name}.tar", [(f"{i}.npy", npy(row)) for i, row in enumerate(rows)])
        run(Job(shards=(str(shard),), resolution=4, rank=0, out=str(tmp_path / name)))
    assert MomentsStore.open(RunFolder(Folder(str(tmp_path / "floats")))).norms is None
    moments = RunFolder(Folder(str(tmp_path / "bytes"))).folder("moments.zarr")
    write_vector(open_group(moments, writable=True), "third", norms_of(ROWS[:5]).limbs().reshape(-1))
    with pytest.raises(DamagedTileError, match="third"):
        norms_in(tmp_path / "bytes")
