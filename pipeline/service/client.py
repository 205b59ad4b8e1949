"""A client of the service, with nothing but the standard library.

>>> client = Client("http://127.0.0.1:8750", token)                       # doctest: +SKIP
>>> run = client.submit(Job(shards=["/data/x.tar"], resolution=64))       # doctest: +SKIP
>>> client.wait(run["id"])["state"]                                       # doctest: +SKIP
'complete'
>>> client.fetch(run["id"], "filter")                                     # doctest: +SKIP
"""

import hashlib
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from tilecov.storage.objects import absolute

from ..job import Job
from .names import FILES

TRIES = 8
"""Times that a request is made where the service is away, as while it is started again."""
_PAUSE = 0.25  # seconds before the second try; each later one waits twice as long, up to 5 s
_PIECE = 1 << 20
_QUIET = 60.0  # seconds without a word, after which a stream is asked for anew

Answer = dict[str, Any]


class ServiceError(RuntimeError):
    """The service refused, or cannot be reached.

    Parameters
    ----------
    status : int
        HTTP status; 0 where nobody answered.
    why : str
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token elsewhere."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class Client:
    """Talks to a service.

    Parameters
    ----------
    url : str
    token : str
        Empty where the service asks for none.
    timeout : float
        Seconds that an answer may take.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 90.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no URL of a service, such as http://127.0.0.1:8750")
        self.url, self._token, self._timeout = url.rstrip("/"), token, timeout
        self._opener = urllib.request.build_opener(_NoRedirects)

    def plan(self, job: Job | Mapping[str, Any]) -> Answer:
        """Return what ``job`` would take; ServiceError names the field at fault."""
        return self._json("POST", "/plan", fields_of(job))

    def submit(self, job: Job | Mapping[str, Any], key: str | None = None) -> Answer:
        """Queue ``job`` and return its run; tried again where the service is away, it is queued once."""
        return self._json("POST", "/runs", fields_of(job), {"Idempotency-Key": key or uuid.uuid4().hex})

    def runs(self, limit: int = 100) -> list[Answer]:
        """Return the newest runs."""
        return list(self._json("GET", f"/runs?limit={limit}")["runs"])

    def run(self, run: str) -> Answer:
        """Return all that is known of a run."""
        return self._json("GET", f"/runs/{run}")

    def cancel(self, run: str) -> Answer:
        """Cancel a run that is not over."""
        return self._json("DELETE", f"/runs/{run}")

    def remove(self, run: str) -> None:
        """Take a run that is over away, its folder too."""
        self._json("DELETE", f"/runs/{run}?remove=true")

    def events(self, run: str) -> Iterator[tuple[str, Answer]]:
        """Yield (name, data) of each event until the stream ends, which the run need not have done."""
        with self._open("GET", f"/runs/{run}/events", timeout=_QUIET) as answer:
            name = ""
            for raw in answer:
                field, _, value = raw.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    def wait(self, run: str, listener: Callable[[str, Answer], None] = lambda _name, _data: None) -> Answer:
        """Return the run when it is over; ``listener`` is given each event until then."""
        failed = 0
        while True:
            try:
                for name, data in self.events(run):
                    listener(name, data)
                    failed = 0
                    if name == "end":
                        return data
            except (OSError, HTTPException, ServiceError) as error:
                if not _may_pass(error):
                    raise
                failed += 1
                if failed > TRIES:
                    raise ServiceError(0, f"{self.url} does not answer; the run may go on without us") from error
            time.sleep(_pause(failed))

    def fetch(self, run: str, folder: str | Path) -> list[Path]:
        """Write a complete run's files into ``folder``, from which `WienerFilter.load` takes them; return their paths.

        What an earlier, broken try has left is gone on with; every checksum is compared.

        Raises
        ------
        ServiceError
            Where the run is not complete.
        ValueError
            Where a file is not what the run made, or has a name that no file of a run has.
        """
        found = self.run(run)
        if found["state"] != "complete":
            raise ServiceError(404, f"run {run} is {found['state']}; its files are there when it is complete")
        sums = {name: item["sha256"] for name, item in (found["result"] or {}).get("artifacts", {}).items()}
        strange = [name for name in found["files"] if name not in FILES]
        if strange:  # it would be a path on this machine
            raise ValueError(f"{self.url} names the file {strange[0]!r}, which no run has; nothing was fetched")
        paths = []
        for name in found["files"]:
            target = Path(folder, FILES[name])
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(f"/runs/{run}/artifacts/{name}", target, sums.get(name))
            paths.append(target)
        return paths

    def _fetch(self, path: str, target: Path, checksum: str | None) -> None:
        part = target.with_name(target.name + ".part")
        if checksum is None:
            part.unlink(missing_ok=True)  # nothing tells whether the rest would fit what is there
        for left in range(TRIES, 0, -1):
            try:
                self._go_on(path, part)
                break
            except (OSError, HTTPException, ServiceError) as error:
                if left == 1 or not _may_pass(error):
                    raise
                time.sleep(_pause(TRIES - left + 1))
        if checksum is not None and (found := _checksum(part)) != checksum:
            part.unlink()
            raise ValueError(f"{target} has the SHA-256 {found}, the run made {checksum}; fetch it again")
        part.replace(target)

    def _go_on(self, path: str, part: Path) -> None:
        """Append what is not there yet."""
        start = part.stat().st_size if part.exists() else 0
        try:
            answer = self._open("GET", path, headers={"Range": f"bytes={start}-"} if start else {})
        except ServiceError as error:
            if error.status == 416:  # all of it is there
                return
            raise
        with answer, part.open("ab" if answer.status == 206 else "wb") as sink:
            wanted = int(answer.headers["Content-Length"])
            while piece := answer.read(_PIECE):
                wanted -= sink.write(piece)
        if wanted:
            raise ConnectionError(f"{path} was cut, {wanted} bytes are missing")

    def _json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        for left in range(TRIES, 0, -1):
            try:
                with self._open(method, path, body, headers) as answer:
                    text = answer.read()
                return dict(json.loads(text)) if text else {}
            except (OSError, HTTPException, ServiceError) as error:
                if left == 1 or not _may_pass(error):
                    raise
                time.sleep(_pause(TRIES - left + 1))
        raise AssertionError

    def _open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> HTTPResponse:  # fmt: skip
        given = {"Accept": "application/json", **(headers or {})}
        if self._token:
            given["Authorization"] = f"Bearer {self._token}"
        data = None
        if body is not None:
            data, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.url + path, data, given, method=method)  # noqa: S310  (checked above)
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=timeout or self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise ServiceError(error.code, _reason(error)) from None
        except urllib.error.URLError as error:
            raise ServiceError(0, f"no service answers at {self.url} ({error.reason})") from None
        return answer


def fields_of(job: Job | Mapping[str, Any]) -> dict[str, Any]:
    """Return a job as a request takes it: what differs from the defaults, local paths made absolute."""
    fields = job.model_dump(mode="json", exclude_defaults=True) if isinstance(job, Job) else dict(job)
    if "shards" in fields:
        fields["shards"] = [absolute(url) if "://" not in url else url for url in fields["shards"]]
    return fields


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what the service says, in one line."""
    with suppress(ValueError, KeyError, TypeError, OSError):
        detail = json.loads(error.read())["detail"]
        if isinstance(detail, str):
            return detail
        return "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in detail)
    return f"the service answered {error.code}"


def _may_pass(error: Exception) -> bool:
    """Return whether trying again may help: nobody answered, the answer was cut, or the service is busy."""
    return not isinstance(error, ServiceError) or error.status in {0, 503}


def _pause(tries: int) -> float:
    return float(min(5.0, _PAUSE * 2 ** max(0, tries - 1)))


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
