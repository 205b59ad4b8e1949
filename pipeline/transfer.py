"""Rows to an accelerator: copied from pinned memory while the rows before them are multiplied."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BUFFERS = 2
"""Blocks of rows on the device: one is multiplied while the other one arrives."""


def host_block(shape: tuple[int, int], kind: str, device: torch.device) -> npt.NDArray[Any]:
    """Return an array that rows are decoded into; pinned where they go to a CUDA device, which fetches it by itself.

    What may be pinned is limited by some systems; without it the rows arrive all the same, more slowly.
    """
    if device.type == "cuda":
        with suppress(RuntimeError):
            return torch.empty(shape, dtype=getattr(torch, kind), pin_memory=True).numpy()
    return np.empty(shape, kind)


def let_go() -> None:
    """Give pinned memory that was freed back to the system; torch keeps it otherwise."""
    cuda: Any = torch.cuda  # untyped
    empty = getattr(torch.accelerator, "empty_host_cache", None)
    if empty is not None and cuda.is_initialized():
        empty()


def sender_to(device: torch.device) -> Callable[[torch.Tensor], AbstractContextManager[torch.Tensor]]:
    """Return what gives rows on ``device`` for the length of a block: the same rows on the CPU."""
    return nullcontext if device.type == "cpu" else Transfer(device).sent


class Transfer:
    """Copies blocks of rows to a device, on a stream of its own; whoever multiplies them uses the current stream.

    Parameters
    ----------
    device : torch.device
        The CPU has the same calls, and copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._calls = device, torch.cuda if device.type == "cuda" else torch.cpu
        stream: Any = self._calls.Stream  # untyped
        self._stream = stream(device) if device.type == "cuda" else stream()
        self._copied = self._calls.Event()
        self._used = [self._calls.Event() for _ in range(BUFFERS)]
        self._buffers = [torch.empty(0)] * BUFFERS
        self._sent = 0

    @contextmanager
    def sent(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Give (n, d) rows on the device; in the block what is done with them is queued.

        ``rows`` may be overwritten as soon as they are given. Two blocks of them fit the device, so that this waits
        for the products of the block before the last one.
        """
        turn, self._sent = self._sent % BUFFERS, self._sent + 1
        buffer = self._buffer(turn, rows)
        with self._calls.stream(self._stream):
            self._stream.wait_event(self._used[turn])  # what was queued with the rows that lie there
            buffer.copy_(rows, non_blocking=True)
            self._copied.record(self._stream)
        current = self._calls.current_stream(self._device)
        current.wait_event(self._copied)
        self._copied.synchronize()
        yield buffer
        self._used[turn].record(current)

    def _buffer(self, turn: int, rows: torch.Tensor) -> torch.Tensor:
        """Return a buffer's first rows; it is made, or made larger, once nothing uses it any more."""
        kept = self._buffers[turn]
        if kept.shape[1:] != rows.shape[1:] or len(kept) < len(rows) or kept.dtype != rows.dtype:
            self._used[turn].synchronize()
            self._buffers[turn] = kept = torch.empty(rows.shape, dtype=rows.dtype, device=self._device)
            self._stream.wait_stream(self._calls.current_stream(self._device))  # whose memory it may have been
        return kept[: len(rows)]
