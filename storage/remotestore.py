"""Zarr on object stores, whose requests are tried again where they fail in passing."""

import asyncio
from collections.abc import Iterable

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from .filesystems import with_limits
from .objects import Folder
from .patience import share_patience
from .retries import retry_async


class RetryingStore(WrapperStore[Store]):
    """Passes everything on to another store and tries again what fails in passing."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the value of ``key``; None where there is none."""
        return await retry_async(lambda: self._store.get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Store ``value`` under ``key``."""
        await retry_async(lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, default: Buffer) -> None:
        """Store ``default`` under ``key`` where it has no value."""
        await retry_async(lambda: self._store.set_if_not_exists(key, default))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def exists(self, key: str) -> bool:
        """Return whether ``key`` has a value."""
        return await retry_async(lambda: self._store.exists(key))

    async def delete(self, key: str) -> None:
        """Remove ``key``."""
        await retry_async(lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys under ``prefix``."""
        await retry_async(lambda: self._store.delete_dir(prefix))


def remote_store(folder: Folder, *, read_only: bool) -> Store:
    """Return the Zarr store in ``folder``, which is on an object store."""
    if hasattr(folder.fs, "service_client"):  # adlfs cannot close what it has opened on another's loop
        wrapped = AsyncFileSystemWrapper(folder.fs, asynchronous=True)
        return RetryingStore(FsspecStore(wrapped, read_only=read_only, path=folder.path()))
    options = with_limits(folder.absolute, folder.options)
    store = FsspecStore.from_url(folder.absolute, storage_options=options, read_only=read_only)
    share_patience(store.fs)
    return RetryingStore(store)
