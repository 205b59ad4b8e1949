"""A few rows of the dataset itself, for a report that is asked to show them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.streams import open_shard

from ..errors import ShardError
from ..job import Job
from ..rows import Kind, RowSpec
from ..shards import Sample, samples

Array = npt.NDArray[Any]


def first_rows(job: Job, kind: Kind, count: int) -> Array:
    """Return the rows of the first samples that can be read, (n, d), 1 <= n <= count.

    Raises
    ------
    ShardError
        Where there is none.
    """
    spec, shards, rows = RowSpec.of(job, kind), list_shards(job.shards, job.storage_options), list[Array]()
    for shard in shards:
        rows += _rows_of(job, spec, shard, count - len(rows))
        if len(rows) == count:
            break
    if not rows:
        raise ShardError(shards[0].url, f"no sample of it is a row of {spec.size} values that could be shown")
    return np.stack(rows)


def _rows_of(job: Job, spec: RowSpec, shard: Shard, count: int) -> list[Array]:
    found: list[Array] = []
    with open_shard(shard, job.storage_options) as stream:
        for item in samples(stream, spec.image_keys, max_bytes=spec.max_sample):
            if len(found) == count:
                break
            row = np.empty(spec.size, spec.kind)
            try:
                if isinstance(item, Sample):
                    spec.decode(item, row)
                    found.append(row)
            except ValueError:  # the ledger says which and why
                continue
    return found
