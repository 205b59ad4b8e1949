"""Ranges that are read ahead: nobody waits for a store once nobody wants its bytes."""

import threading

import pytest

from tilecov.storage.readahead import ReadAhead
from tilecov.storage.sources import Sink, Source


class Hanging(Source):
    """A store that takes requests and answers none."""

    def __init__(self) -> None:
        super().__init__(None, "memory://shard.tar", 1 << 30, "1")
        self.asked, self.ended = threading.Event(), threading.Event()

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        self.asked.set()
        self.ended.wait()


def test_a_store_that_hangs_is_not_waited_for_once_nobody_wants_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.storage.sources.shown_url", lambda fs, path: path)  # there is no file system
    source, stopped = Hanging(), threading.Event()

    def stop() -> None:
        source.asked.wait()
        stopped.set()

    threading.Thread(target=stop).start()
    with pytest.raises(InterruptedError, match="closed"):
        ReadAhead(source, stopped).read(0, 1)
    source.ended.set()
