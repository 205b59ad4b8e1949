"""Processes that decode samples into memory shared with the one that uses the rows.

Threads share the interpreter: over small pictures that are decoded one by one, each by several functions, they spend as
long waiting for it as they spend decoding, and no number of cores makes one process read more than some 20,000 a
second. So where there is much to decode, and it is no kind that C decodes a batch at a time (`images.usual_rows`),
the decoders are forked. They get the encoded samples and write rows through memory that was shared before the fork;
neither is copied through a pipe.
"""

import mmap
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from multiprocessing import connection
from typing import Any

import numpy as np
import numpy.typing as npt

from .batches import BATCH_BYTES
from .decoders import Batch, Decoded, PictureBudget, decode_batch
from .errors import DecoderDiedError, DoesNotFitError
from .rows import RowSpec
from .shards import Sample

_IN_HAND = 4
"""Batches that a decoder has at a time: one that it decodes, and some that wait while the one who asks is held up."""

Block = npt.NDArray[Any]
Told = tuple[str, str, int, bytes | None]
"""Key, extension and size of a sample, and the file beside it."""


def can_fork() -> bool:
    """Return whether processes may be forked here: on Linux, where forked decoders were tried."""
    return sys.platform == "linux" and hasattr(os, "fork")


def shared_blocks(blocks: int, shape: tuple[int, int], kind: str) -> list[Block]:
    """Return arrays of this shape, in memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return [np.frombuffer(mmap.mmap(-1, max(1, size)), kind, shape[0] * shape[1]).reshape(shape) for _ in range(blocks)]


class ForkedDecoders:
    """Decoder processes, forked when this is made; one thread uses them.

    Parameters
    ----------
    spec : RowSpec
    pictures : PictureBudget
        A picture larger than the usual ones is decoded by the process that asks: one at a time.
    blocks : sequence of array
        Of ``shared_blocks``: the rows handed to ``start`` are views of them.
    processes : int
    """

    def __init__(self, spec: RowSpec, pictures: PictureBudget, blocks: Sequence[Block], processes: int) -> None:
        self._spec, self._pictures, self._blocks = spec, pictures, list(blocks)
        self._slots = [
            [mmap.mmap(-1, 2 * BATCH_BYTES) for _ in range(_IN_HAND)] for _ in range(processes)
        ]  # touched as far as it is used
        self._sent = [0] * processes
        self._waiting: deque[tuple[int, Batch]] = deque()
        self._pipes: list[connection.Connection] = []
        self._pids: list[int] = []
        try:
            for index in range(processes):
                self._fork(index)
        except BaseException:
            self.close()
            raise

    def _fork(self, index: int) -> None:
        ours, theirs = connection.Pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads whose locks a child inherits: a decoder takes none of theirs.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the one who asks
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and so is whatever that one does about this
                for pipe in (*self._pipes, ours):
                    pipe.close()  # else no decoder would see that the process which asks is gone
                self._serve(theirs, self._slots[index])
            finally:
                os._exit(0)
        theirs.close()
        self._pipes.append(ours)
        self._pids.append(pid)

    @property
    def is_full(self) -> bool:
        """Whether a batch must be taken before another one can be started."""
        return len(self._waiting) >= _IN_HAND * len(self._pids)

    def start(self, batch: Batch) -> None:
        """Hand over a batch, decoders in turn."""
        decoder = sum(self._sent) % len(self._pids)
        memory = self._slots[decoder][self._sent[decoder] % _IN_HAND]
        self._sent[decoder] += 1
        told, size = list[Told](), batch.bytes
        if size <= len(memory):
            memory[:size] = b"".join([sample.data for sample in batch.samples])
            told = [
                (key, extension, len(data), None if beside is None else bytes(beside))
                for key, extension, data, beside in batch.samples
            ]
            batch = replace(batch, samples=_samples_in(memory, told))  # which lets go of the chunks that they lay in
        self._waiting.append((decoder, batch))
        with suppress(OSError):  # it died: said when its answer is taken
            self._pipes[decoder].send((*self._place_of(batch.rows), told))

    def _place_of(self, rows: Block) -> tuple[int, int]:
        """Return which block ``rows`` are of, and their first row in it."""
        address = rows.__array_interface__["data"][0]
        for index, block in enumerate(self._blocks):
            start, stride = block.__array_interface__["data"][0], block.strides[0]
            if start <= address < start + block.nbytes:
                return index, (address - start) // stride
        raise ValueError("rows of another array than the shared blocks")

    def take(self) -> Decoded:
        """Wait for the batch that was started first; return what was found in it.

        Raises
        ------
        DoesNotFitError
            Where a picture needs more memory than there is.
        DecoderDiedError
            Where there is no decoder any more.
        """
        decoder, batch = self._waiting.popleft()
        try:
            found: Decoded | Exception | None = self._pipes[decoder].recv()
        except (EOFError, OSError) as error:
            raise self._died(decoder, batch) from error
        if found is None or isinstance(found, DoesNotFitError):  # too large for a decoder
            return decode_batch(self._spec, self._pictures, batch.samples, batch.rows)
        if isinstance(found, Exception):
            raise found
        return found

    def _died(self, decoder: int, batch: Batch) -> DecoderDiedError:
        code = _wait_for(self._pids[decoder])
        self._pids[decoder] = 0
        how = "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        first, last = batch.samples[0].key, batch.samples[-1].key
        return DecoderDiedError(
            f"a decoder process {how} over the samples {first!r} to {last!r} of {batch.shard}; the same command goes "
            "on, and --decode-threads 1 decodes without such processes"
        )

    def close(self) -> None:
        """End the decoders; what they were at is dropped."""
        for pipe in self._pipes:
            pipe.close()
        for pid in self._pids:
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _wait_for(pid)
        self._pids, self._pipes = [], []
        self._waiting.clear()

    def _serve(self, pipe: connection.Connection, slots: Sequence[mmap.mmap]) -> None:
        """Decode what is asked for until nobody asks any more."""
        pictures = replace(self._pictures, large=0)
        for number in count():
            try:
                block, row, told = pipe.recv()
            except (EOFError, OSError):
                return
            samples = _samples_in(slots[number % _IN_HAND], told)
            rows = self._blocks[block][row : row + len(samples)]
            try:
                pipe.send(decode_batch(self._spec, pictures, samples, rows) if told else None)
            except Exception as error:  # noqa: BLE001  (raised again where it is taken)
                pipe.send(error)


def _samples_in(slot: mmap.mmap, told: Sequence[Told]) -> list[Sample]:
    """Return the samples that lie in ``slot`` one after another."""
    memory, at, samples = memoryview(slot).toreadonly(), 0, []
    for key, extension, size, companion in told:
        samples.append(Sample(key, extension, memory[at : at + size], companion))
        at += size
    return samples


def _wait_for(pid: int) -> int | None:
    """Wait for the end of a process; return its status, None where this process has the system forget children."""
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    return None
