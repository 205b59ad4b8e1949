"""What the stages of a run work with: its job, plan, folder and manifest, and the tasks that they hand out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tilecov.storage.listing import Shard
from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError, Partial
from tilecov.storage.runs import RunFolder
from tilecov.storage.tiling import Tiling

from .bounds import INT32_ROWS
from .covariance import Array
from .decoders import PictureBudget
from .errors import OtherJobError
from .executors import SerialExecutor, TaskExecutor, run_all
from .finishing import Finishing
from .job import Job
from .ledgers import combine
from .momentstore import MomentsStore, Source, Whole, uint8_origin
from .observer import Observer
from .plan import Plan, Span, make_groups
from .rows import RowSpec
from .rowsource import StagedSet
from .slabs import SlabTask
from .tasks import TilesTask, UnitTask

Record = dict[str, Any]
Work = Callable[..., Record]


@dataclass(frozen=True)
class Context:
    """A run under way.

    Parameters
    ----------
    job : Job
    shards : tuple of Shard
        Those that are to be read; none for a merge.
    run : RunFolder
    manifest : dict
        The content of run.json; stages add to it.
    plan : Plan
        As the run was begun with.
    executor : TaskExecutor
    observer : Observer
    """

    job: Job
    shards: tuple[Shard, ...]
    run: RunFolder
    manifest: dict[str, Any]
    plan: Plan
    executor: TaskExecutor
    observer: Observer

    @cached_property
    def finishing(self) -> Finishing:
        """What notes its stages as finished."""
        return Finishing(self.run)

    @property
    def tiling(self) -> Tiling:
        """How the columns are cut."""
        return Tiling(self.plan.size, self.plan.tile)

    @property
    def kind(self) -> str:
        """The dtype of the rows."""
        return str(self.manifest["dataset"]["kind"])

    @property
    def affine(self) -> tuple[float, float]:
        """Scale and offset of the value range; float rows are taken as they are."""
        return self.job.affine if self.kind == "uint8" else (1.0, 0.0)

    @property
    def range(self) -> str:
        """The name of the value range."""
        return self.job.range if self.kind == "uint8" else "as stored"

    @property
    def origin(self) -> Array:
        """What is subtracted from every row: 128, or for floats the mean of the first pass or of the run extended."""
        if self.kind == "uint8":
            return uint8_origin()
        if self.manifest["sources"]:
            return MomentsStore.open(self._source_run(self.manifest["sources"][0])).origin
        found = self.run.commits("origin")["mean"]
        return Partial(self.run.folder(found["prefix"])).read(found["mean"])

    @property
    def final_moments(self) -> MomentsStore:
        """The moments that statistics are made of: with their symmetries, where there are any."""
        return MomentsStore.open(self.run, "augmented" if self.job.augment else "")

    def note_digest(self, inside: str) -> None:
        """Keep the digest of finished moments in the manifest; without a gram they have none."""
        if not self.job.covariance:
            return
        self.manifest["augmented_digest" if inside else "moments_digest"] = MomentsStore.open(self.run, inside).digest

    def _source_run(self, source: Mapping[str, Any]) -> RunFolder:
        return RunFolder(Folder(source["url"], self.job.storage_options))

    def sources(self) -> list[Source]:
        """Return the finished runs that this one adds or takes away.

        Raises
        ------
        OtherJobError
            Where one holds other moments than when this run was begun.
        """
        stores = [(MomentsStore.open(self._source_run(item)), item) for item in self.manifest["sources"]]
        for store, item in stores:
            if store.digest != item["digest"]:
                raise OtherJobError(
                    f"{item['url']} had moments {item['digest']} when {self.run.url} was begun and has {store.digest} "
                    "now; choose another --out"
                )
        return [Whole(store, self.origin, item["url"], item["sign"]) for store, item in stores]

    @property
    def taken_over(self) -> int:
        """Rows that come from finished runs."""
        return sum(source.sign * source.count for source in self.sources())

    def ledger(self) -> list[Record]:
        """Return the ledger of everything that counts, shard by shard."""
        read = [(item["sign"], self._source_run(item).read_ledger()) for item in self.manifest["sources"]]
        own = self.committed_units("rows" if self.plan.strategy == "staged" else "moments")
        return [*combine(read), *(line for record in own for line in record["ledger"])]

    @property
    def unit_names(self) -> list[str]:
        """Names of the units, in order."""
        return [f"{index:05d}" for index in range(len(self.plan.units))]

    def committed_units(self, stage: str) -> list[Record]:
        """Return the commit records of all units, in order; DamagedTileError where one was lost."""
        found = self.run.commits(stage) if self.plan.units else {}
        if lost := [name for name in self.unit_names if name not in found]:
            raise DamagedTileError(f"{len(lost)} of {len(self.unit_names)} commits of {stage} are missing: {lost[0]}")
        return [found[name] for name in self.unit_names]

    def staged_rows(self) -> StagedSet:
        """Return the rows that this run staged."""
        store, (scale, _) = self.final_moments, self.affine
        return StagedSet(self.run, self.tiling, self.committed_units("rows"), store.sum, store.origin, scale)

    def read_units(self, stage: str, work: Work, *, with_origin: bool = True) -> list[Record]:
        """Run the tasks of all units that are not committed yet; return all commit records in order."""
        done, common = self.run.commits(stage), self._common(stage, with_origin=with_origin)
        self._check_unchanged(done)
        tasks = [
            UnitTask(
                **common,
                name=name,
                shards=self.shards[slice(*unit)],
                block_rows=self.plan.block_rows,
                threads=self.plan.decode_threads,
                skip=self.job.on_error == "skip",
                max_groups=self.job.max_groups if self.job.group_by else 1,
                pictures=PictureBudget(self.plan.usual_pixels, self.plan.large_pixels),
                forked=self.plan.forked,
                blocks=self.plan.blocks,
            )
            for name, unit in zip(self.unit_names, self.plan.units, strict=True)
        ]
        self.observer.stage(stage, len(self.shards), "shards")
        self.observer.advance(sum(len(record["ledger"]) for record in done.values()))
        todo = [task for task in tasks if task.name not in done]
        done |= dict(self._run_tasks(todo, work, lambda record: (len(record["ledger"]), _rows(record))))
        return [done[name] for name in self.unit_names]

    def sum_tile_groups(self, work: Work) -> list[Record]:
        """Run the tasks of all tile groups that are not committed yet; return all commit records."""
        done, staged = self.run.commits("tiles"), tuple(self.committed_units("rows"))
        slim = tuple({name: record[name] for name in ("prefix", "count", "sum")} for record in staged)
        groups, wide = self._tile_groups(sum(record["count"] for record in staged))
        common = self._common("tiles", with_origin=True)
        tasks = [
            TilesTask(
                **common,
                name=f"{left[0]}-{right[0]}",
                left=left, right=right, staged=slim, wide=wide,
                sources=tuple(item["url"] for item in self.manifest["sources"]),
            )
            for left, right in groups
        ]  # fmt: skip
        self.observer.stage("tiles", sum(len(list(task.pairs())) for task in tasks), "tiles")
        self.observer.advance(sum(record["tiles"] for record in done.values()))
        todo = [task for task in tasks if task.name not in done]
        done |= dict(self._run_tasks(todo, work, lambda record: (record["tiles"], 0)))
        return list(done.values())

    def make_slabs(self, work: Work, rank: int) -> list[Record]:
        """Run the tasks of all eigenvectors that are not committed yet; return all records.

        A task is a slab, or a tile column where slabs are narrower, so that a tile has one writer.
        """
        done, (record,) = self.run.commits("vectors"), self.run.commits("tridiagonal").values()
        common = self._common("vectors", with_origin=False)
        slabs = Tiling(rank, max(self.plan.slab, self.plan.tile))
        tasks = [
            SlabTask(
                **common, name=f"{columns.start // self.plan.tile:05d}", start=columns.start, stop=columns.stop,
                step=self.plan.slab, width=self.plan.band_width, precision=self.plan.precision, record=record,
            )
            for columns in slabs.spans()
        ]  # fmt: skip
        self.observer.stage("vectors", rank, "eigenvectors")
        self.observer.advance(sum(record["columns"] for record in done.values()))
        todo = [task for task in tasks if task.name not in done]
        done |= dict(self._run_tasks(todo, work, lambda record: (record["columns"], 0)))
        return list(done.values())

    def _tile_groups(self, rows: int) -> tuple[tuple[tuple[Span, Span], ...], bool]:
        """Return the groups of tiles to sum, and whether in int64.

        The plan knew an estimate of the rows. Where there turn out to be more than int32 holds, int64 tiles in groups
        of half the side take no more memory than was planned.
        """
        groups = self.plan.tile_groups
        if self.plan.wide or self.kind != "uint8" or rows <= INT32_ROWS:
            return groups, self.plan.wide
        (first, last), _ = groups[0]
        return tuple(make_groups(len(self.tiling), max(1, (last - first) // 2))), True

    def _common(self, stage: str, *, with_origin: bool) -> dict[str, Any]:
        floats = with_origin and self.kind != "uint8"
        return {
            "run": self.run.root.absolute,
            "stage": stage,
            "spec": RowSpec.of(self.job, cast("Any", self.kind)),
            "tile": self.plan.tile,
            "device": self.job.device,
            "kernel": self.plan.kernel,
            "origin": self._origin_record() if floats else None,
            "options": self.job.storage_options,
        }

    def _origin_record(self) -> Record:
        if not self.manifest["sources"]:
            return self.run.commits("origin")["mean"]
        prefix = self.run.fresh("mean", "origin")
        return {"prefix": prefix, "mean": Partial(self.run.folder(prefix)).write("mean", self.origin)}

    def _run_tasks(
        self, tasks: list[Any], work: Work, progress: Callable[[Record], tuple[int, int]]
    ) -> Iterator[tuple[str, Record]]:
        """Yield (name, commit record) of each task as it ends; the first error cancels the rest."""
        if isinstance(self.executor, SerialExecutor):
            for task in tasks:  # progress within a task can be seen from here only where it runs here
                record = work(task, self.observer.advance)
                self.observer.unit(task.stage, task.name, record)
                yield task.name, record
            return
        for task, record in run_all(self.executor, work, tasks, self.observer.note):
            self.observer.advance(*progress(record))
            self.observer.unit(task.stage, task.name, record)
            yield task.name, record

    def _check_unchanged(self, done: Mapping[str, Record]) -> None:
        """Raise where a shard that has been read is not what it was."""
        now = {shard.url: shard for shard in self.shards}
        for line in (line for record in done.values() for line in record["ledger"]):
            shard = now.get(line["url"])
            if shard is None:
                raise OtherJobError(f"{self.run.url} was begun with {line['url']}, not named now; choose another --out")
            if change := shard.change_since(line):
                raise OtherJobError(
                    f"{line['url']} has changed since {self.run.url} read it: {change}; choose another --out"
                )


def _rows(record: Record) -> int:
    return int(record.get("count") or sum(part["count"] for part in record.get("parts", ())))
