"""The processes that read shards: `python -m tilecov.pipeline.service.worker run|plan`, children of the service.

What they are to do comes as JSON lines on stdin, so that no command line shows credentials; when stdin ends, the
service is gone, and they end at once: another service finds the run free.
"""

import contextlib
import json
import os
import sys
import threading
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact, secrets_of
from tilecov.storage.runs import REPORT, RunFolder

from ..errors import BadDataError, BusyError, CertificateError, DoesNotFitError
from ..job import Job
from ..run import foresee, run
from ..sizes import show_size
from .addresses import are_forbidden, forbid_addresses
from .places import Places, RefusedUrlError, is_web
from .records import summary_of

BUSY = 75
"""Exit status: another process still works on the run; try again."""
ORPHAN = 76
"""Exit status: the service is gone."""
_EVERY = 1.0  # seconds between two lines of progress


class Request(BaseModel):
    """What a worker is to do.

    Parameters
    ----------
    job : dict
        The job, its run folder among it, without storage options.
    options : dict
        The operator's storage options.
    allow : list of str
        Prefixes below which shards may lie.
    limit : int
        Bytes that all processes of the run may take.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    job: dict[str, Any]
    options: dict[str, Any] = Field(repr=False)
    allow: list[str]
    limit: int


def _secrets(request: Request) -> frozenset[str]:
    return secrets_of(request.options, os.environ)


def checked_job(request: Request) -> Job:
    """Return the job over the shards that its patterns come to, each of them below an allowed prefix.

    Raises
    ------
    RefusedUrlError
        Where one is not.
    """
    from tilecov.storage.listing import list_shards

    places = Places(request.allow)
    urls = places.check(request.job["shards"])
    options = dict(request.options)
    if any(map(is_web, urls)):
        forbid_addresses()
        options["allow_redirects"] = False  # a redirect would lead out of the prefix; for web servers alone
    shards = list_shards(urls, options)
    places.check_found(shards)
    return Job(
        **{**request.job, "shards": tuple(shard.address or shard.url for shard in shards)}, storage_options=options
    )


def carry_out(request: Request) -> None:
    """Do a run; its log goes to stderr, its exit status says how it ended."""
    from ..cli.log import logging

    with logging(_secrets(request), _EVERY) as log:
        try:
            job = checked_job(request)
            manifest = run(job, log)
        except BusyError:
            sys.exit(BUSY)
        except CertificateError:  # all is computed, and people will want to see what falls short
            _leave_report(RunFolder(Folder(request.job["out"], request.options)))
            raise
        log.completed(manifest, str(job.out))


def _leave_report(folder: RunFolder) -> None:
    """Write the report of a failed run, without links to its artifacts; where it cannot be made, there is none."""
    from ..report import make_report

    with contextlib.suppress(Exception):
        folder.root.write(REPORT, make_report(folder, links=None).encode())


def answer(request: Request) -> dict[str, Any]:
    """Return ``{"plan": ...}``, or ``{"field": ..., "error": ...}`` where the job cannot be done."""
    from tilecov.storage.listing import list_shards

    try:
        job = checked_job(request)
        plan = foresee(job, tuple(list_shards(job.shards, job.storage_options))).plan
        _check_limit(plan.peak, job.workers, request.limit)
    except Exception as error:
        field = _field_of(error)
        if field is None:
            raise
        return {"field": field, "error": redact(_text(error), _secrets(request))}
    return {"plan": summary_of(plan.as_dict())}


def _check_limit(peak: int, workers: int, limit: int) -> None:
    """Raise DoesNotFitError where a run takes more than the service allows to all."""
    if peak * workers > limit:
        raise DoesNotFitError(
            f"{workers} processes of {show_size(peak)} need {show_size(peak * workers)} and the service allows "
            f"{show_size(limit)}"
        )


def _field_of(error: Exception) -> str | None:
    """Return the field of the job that is at fault; None where it is a bug."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "job"
    if isinstance(error, DoesNotFitError):
        return "resolution" if "disk" in str(error) else "memory"
    if isinstance(error, RefusedUrlError | BadDataError):
        return "shards"
    if isinstance(error, RuntimeError):
        return "device" if "device" in str(error).lower() or "cuda" in str(error).lower() else None
    if isinstance(error, ValueError):
        return "device" if "device" in str(error) else "shards"
    return "shards" if isinstance(error, OSError) else None


def _text(error: Exception) -> str:
    from ..cli.failures import explain

    if isinstance(error, ValidationError):  # the field is told apart from it
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return explain(error)


def plan_for_ever() -> None:
    """Answer requests, a line each, until stdin ends.

    An answer is the last one where it says ``spent``: what was done for its job would stand in the way of others.
    """
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    threading.Thread(target=_end_without_a_reader, args=(out.fileno(),), daemon=True).start()
    for line in sys.stdin:
        request = Request(**json.loads(line))
        try:
            found = answer(request)
        except Exception as error:  # noqa: BLE001  (the request is lost, the worker goes on)
            sys.stderr.write(f"planning failed: {type(error).__name__}: {redact(str(error), _secrets(request))}\n")
            found = {"bug": True}
        found["spent"] = are_forbidden()  # the rule stays for life, and the credentials of a store may lie behind it
        out.write(json.dumps(found) + "\n")
        out.flush()


def _end_without_a_reader(pipe: int) -> None:
    """Wait until nobody reads our answers: the service is gone, and the plan under way is for nobody."""
    import select

    poll = select.poll()
    poll.register(pipe, select.POLLERR)
    poll.poll()
    os._exit(ORPHAN)


def _end_with_the_service() -> None:
    """Wait for the end of stdin; nobody is there any more who would hear how this ends."""
    while os.read(0, 4096):
        pass
    os._exit(ORPHAN)


def main() -> None:
    """Do what the first argument says."""
    if sys.argv[1:] == ["plan"]:
        plan_for_ever()
        return
    request = Request(**json.loads(sys.stdin.buffer.raw.readline()))  # type: ignore[union-attr]
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    os.nice(5)  # the service answers while its workers compute
    import typer

    try:
        carry_out(request)
    except typer.Exit as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
