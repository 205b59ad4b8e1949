"""The errors that a caller may want to catch; everything else is a ValueError, an OSError or a bug."""


class BadDataError(Exception):
    """A shard or a sample cannot be read; the message names both and the way out."""


class SampleError(BadDataError):
    """One sample cannot become a row.

    Parameters
    ----------
    shard : str
        URL.
    key : str
    reason : str
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"sample {self.key!r} of {self.shard}: {self.reason.rstrip('.')}. --on-error skip goes on without it"


class ShardError(BadDataError):
    """A shard cannot be read to its end.

    Parameters
    ----------
    shard : str
        URL.
    reason : str
    """

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(shard, reason)
        self.shard, self.reason = shard, reason

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.reason}. Replace it, or go on with --on-error skip"


class TooFewRowsError(BadDataError):
    """There are fewer than two rows, or too many were skipped."""


class TooManyGroupsError(BadDataError):
    """The samples fall into more groups than memory was kept for."""


class OtherJobError(ValueError):
    """The run folder holds another job; the message names the field that differs."""


class DoesNotFitError(MemoryError):
    """The work does not fit the memory it may use; the message names both sizes and the option to change."""


class BusyError(RuntimeError):
    """Another process works on the run folder."""


class CertificateError(RuntimeError):
    """A spectrum or an artifact falls short of what was promised."""


class ClusterError(RuntimeError):
    """The Dask cluster cannot do the work: other versions, no workers, its scheduler lost; the message names which."""


class DecoderDiedError(RuntimeError):
    """A decoder process was ended from outside, or by a fault in a codec; the message names what it was decoding."""
