"""Finished runs added and subtracted: exact, without reading a shard again."""

from collections.abc import Mapping, Sequence
from typing import Any

from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder

from .errors import OtherJobError
from .executors import measure_for
from .job import Job
from .ledgers import combine
from .observer import Observer
from .plan import plan
from .run import Manifest, check_kinds, go_on, nothing_to_read, source_of, write_manifest


def merge(
    runs: Sequence[str],
    out: str,
    *,
    subtract: Sequence[str] = (),
    allow_duplicates: bool = False,
    changes: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Add the moments of ``runs``, take those of ``subtract`` away, and finish as ``run`` does.

    Parameters
    ----------
    runs, subtract : sequence of str
        Folders of complete runs. What is subtracted must have been added.
    out : str
        The run folder of the result.
    allow_duplicates : bool
        Whether a shard that two runs have read may count twice.
    changes : mapping, optional
        Fields of the job that shall differ from the first run's: dtype, rank, svd, augment, range, memory and so on.
    observer : Observer, optional

    Raises
    ------
    OtherJobError
        Where rows are not made alike, a shard would count twice, or what is subtracted is not there.
    FileNotFoundError
        Where a run is not complete.
    """
    options = dict((changes or {}).get("storage_options") or {})
    folder = RunFolder(Folder(out, options))
    job = _job_of(runs[0], out, options, changes or {})
    sources = [source_of(url, job, 1) for url in runs] + [source_of(url, job, -1) for url in subtract]
    check_kinds(sources)
    read = [(source["sign"], RunFolder(Folder(source["url"], options)).read_ledger()) for source in sources]
    ledger = combine(read, allow_duplicates=allow_duplicates)

    def begin() -> Manifest:
        facts = nothing_to_read(sources)
        planned = plan(job, facts, measure_for(job, out))
        manifest = write_manifest(folder, job, planned, sources, facts.kind, (), 0)
        manifest["dataset"] |= {"shards": len(ledger), "bytes": sum(line["size"] for line in ledger)}
        folder.save(manifest)
        return manifest

    manifest = go_on(job, (), folder, begin, observer or Observer())
    recorded = [(source["url"], source["sign"]) for source in manifest["sources"]]
    if recorded != [(source["url"], source["sign"]) for source in sources]:
        raise OtherJobError(f"{out} holds a merge of other runs; choose another --out")
    return manifest


def _job_of(url: str, out: str, options: dict[str, Any], changes: Mapping[str, Any]) -> Job:
    folder = RunFolder(Folder(url, options))
    manifest = folder.load()
    if manifest is None:
        raise FileNotFoundError(f"no run at {folder.url}; `tilecov run` makes one")
    fields = {name: value for name, value in manifest["job"].items() if name not in {"extend", "group_by"}}
    return Job(**{**fields, **changes, "out": out})
