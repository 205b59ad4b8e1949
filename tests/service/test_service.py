"""The service as it is run: a process that answers, and processes that compute."""

import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import random_images, write_shards
from running import SECRET, Service, serving

from tilecov.pipeline import Job, WienerFilter, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.service.client import Client, ServiceError


@dataclass
class Web:
    """A web server that sends whoever asks to another place; it keeps what it was asked for."""

    port: int
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """Redirect /sets/out.tar to /private.tar of the same machine, /sets/meta.tar to the metadata address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            where = {
                "/sets/out.tar": f"http://127.0.0.1:{found.port}/private.tar",
                "/sets/meta.tar": "http://169.254.169.254/",
            }
            self.send_response(302 if self.path in where else 200)
            if self.path in where:
                self.send_header("Location", where[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / "data"
    write_shards(folder, random_images(60, 8), 2)
    (folder.parent / "secret").mkdir()
    write_shards(folder.parent / "secret", random_images(20, 8), 1)
    (folder / "links").mkdir()
    (folder / "links" / "out.tar").symlink_to(folder.parent / "secret" / "part-000.tar")
    return folder


@pytest.fixture(scope="module")
def service(data: Path, web: Web) -> Iterator[Service]:
    allow = [str(data), f"http://127.0.0.1:{web.port}/sets"]
    with serving(data.parent / "root", allow, ["--memory", "4GiB"], token=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Service) -> Client:
    return service.client


@pytest.fixture(scope="module")
def done(client: Client, data: Path) -> tuple[dict[str, Any], list[str]]:
    """A run that was submitted and watched to its end, and the events that were heard."""
    heard: list[str] = []
    submitted = client.submit(Job(shards=(f"{data}/*.tar",), resolution=8, rank=20))
    found = client.wait(submitted["id"], lambda name, _data: heard.append(name))
    assert submitted["plan"]["size"] == 192
    return found, heard


def test_a_job_is_done_as_run_does_it(done: tuple[dict[str, Any], list[str]], data: Path, tmp_path: Path) -> None:
    found, heard = done
    assert found["state"] == "complete", found
    own = run(Job(shards=(f"{data}/*.tar",), resolution=8, rank=20, out=str(tmp_path / "run")))
    assert found["result"]["moments_digest"] == own["moments_digest"]
    assert found["result"]["dataset"]["used"] == 60
    assert {"snapshot", "state", "plan", "stage_started", "stage_done", "run_complete", "end"} <= set(heard)
    assert heard[-1] == "end"


def test_what_is_fetched_is_the_filter(
    done: tuple[dict[str, Any], list[str]], client: Client, service: Service, tmp_path: Path
) -> None:
    run_id = done[0]["id"]
    paths = client.fetch(run_id, tmp_path / "got")
    assert {path.name for path in paths} == {*done[0]["files"]}
    whole = (tmp_path / "got" / "artifacts" / "U.pt").read_bytes()
    assert WienerFilter.load(tmp_path / "got").U.shape == (192, 20)
    part = tmp_path / "again" / "artifacts" / "U.pt.part"  # a fetch that was broken
    part.parent.mkdir(parents=True)
    part.write_bytes(whole[:1000])
    client.fetch(run_id, tmp_path / "again")
    assert (tmp_path / "again" / "artifacts" / "U.pt").read_bytes() == whole
    part.write_bytes(b"x" + whole[1:1000])
    with pytest.raises(ValueError, match="SHA-256"):
        client.fetch(run_id, tmp_path / "again")
    with pytest.raises(ServiceError, match="token"):
        Client(service.url, "a token that is not the right one").run(run_id)


def test_the_report_and_the_page_show_it(done: tuple[dict[str, Any], list[str]], service: Service) -> None:
    def get(path: str) -> str:
        request = urllib.request.Request(f"{service.url}{path}", headers={"Authorization": f"Bearer {SECRET}"})
        with urllib.request.urlopen(request) as answer:
            return str(answer.read().decode())

    found = done[0]
    report, page = get(f"/runs/{found['id']}/report"), get(f"/runs/{found['id']}/page")
    for text in (report, page):
        assert found["result"]["moments_digest"] in text
        assert text.count("data:image/png;base64") > 40
        assert 'href="artifacts/U.pt"' in text
    assert str(service.root) not in page
    assert (
        f'tilecov_runs{{state="complete"}} {sum(run["state"] == "complete" for run in service.client.runs())}'
        in get("/metrics")
    )


def test_the_commands(done: tuple[dict[str, Any], list[str]], service: Service, data: Path, tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("TILECOV_SERVICE", service.url)
    monkeypatch.setenv("TILECOV_TOKEN", SECRET)
    assert run_safely(["submit", f"{data}/nothing-*.tar", "-r", "8"]) == 1
    assert "no shard matches" in capsys.readouterr().err
    assert run_safely(["submit", f"{data}/part-000.tar", "-r", "8", "--rank", "0", "--watch"]) == 0
    out, err = capsys.readouterr()
    run_id = out.split()[0]
    assert out.splitlines()[-1] == f"{run_id}: complete"
    assert "statistics: done in" in err
    assert run_safely(["watch", run_id]) == 0
    assert run_safely(["fetch", run_id, "--out", str(tmp_path / "got")]) == 0
    assert json.loads((tmp_path / "got" / "run.json").read_text())["state"] == "complete"
    assert run_safely(["watch", "20260101T000000-000000000000"]) == 1
    assert run_safely(["submit", "s3://b/x.tar", "-r", "8", "--storage-options", '{"secret": "hunter2hunter2"}']) == 2
    error = capsys.readouterr().err
    assert "operator" in error
    assert "hunter2" not in error


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        (["/etc/passwd"], "not below an allowed prefix"),
        (["{data}/links/out.tar"], "not below an allowed prefix"),
        (["{data}/links/*.tar"], "not below an allowed prefix"),
        (["{data}/links"], "not below an allowed prefix"),
        (["file://{data}/../secret/part-000.tar"], "'.' and '..'"),
        (["{data}/gone.tar"], "no shard at"),
        (["{data}/part-000.tar", "{data}/part-000.tar"], "named 2 times"),
        (["{web}/out.tar"], ""),
        (["{web}/meta.tar"], ""),
    ],
)
def test_shards_that_are_refused(client: Client, data: Path, web: Web, shards: list[str], said: str) -> None:
    named = [url.format(data=data, web=f"http://127.0.0.1:{web.port}/sets") for url in shards]
    with pytest.raises(ServiceError) as refused:
        client.plan({"shards": named, "resolution": 8})
    assert refused.value.status == 422
    assert str(refused.value).startswith("shards: ")
    assert said in str(refused.value)
    assert "/private.tar" not in web.asked  # no redirect was followed


@pytest.mark.parametrize(
    ("job", "field"),
    [({"memory": "1MiB"}, "memory"), ({"workers": 64}, "memory"), ({"device": "cuda:77"}, "device"),
     ({"device": "nonsense"}, "device"), ({"extend": "/etc"}, "extend"), ({"group_by": "("}, "group_by"),
     ({"image_key": ["npy"]}, "shards"), ({"resolution": 8, "rank": 500}, "rank"),
     ({"svd": "dual", "augment": "d4"}, "augment")],
)  # fmt: skip
def test_jobs_that_cannot_be_done_name_the_field(client: Client, data: Path, job: dict[str, Any], field: str) -> None:
    with pytest.raises(ServiceError) as refused:
        client.plan({"shards": [f"{data}/part-000.tar"], "resolution": 8, **job})
    assert refused.value.status == 422
    assert str(refused.value).split(":")[0] == field, str(refused.value)


def test_a_second_service_on_a_root_does_not_start(service: Service, capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("TILECOV_TOKEN", SECRET)
    assert run_safely(["serve", "--root", str(service.root), "--port", "1"]) == 1
    error = capsys.readouterr().err
    assert "works on" in error
    assert "--root" in error


def test_nothing_answers_where_there_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.pipeline.service.client._PAUSE", 1e-3)
    with pytest.raises(ServiceError, match="no service answers"):
        Client("http://127.0.0.1:1").runs()
    with pytest.raises(ValueError, match="no URL"):
        Client("file:///etc/passwd")


def test_the_log_has_no_token(service: Service, done: tuple[dict[str, Any], list[str]]) -> None:
    text = service.log.read_text()
    assert SECRET not in text
    assert service.url in text


def test_a_run_is_told_the_same_from_memory_until_it_is_gone(service: Service, data: Path) -> None:
    run = service.client.submit({"shards": [f"{data}/*.tar"], "resolution": 8, "rank": 0})["id"]
    service.client.wait(run)

    def ask(method: str = "GET", query: str = "") -> tuple[int, str | None, bytes]:
        headers = {"Authorization": f"Bearer {SECRET}"}
        request = urllib.request.Request(f"{service.url}/runs/{run}{query}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["content-type"], error.read()

    first = ask()
    assert first == ask() == ask("GET", "?x=1")
    assert json.loads(first[2])["state"] == "complete"
    assert ask("DELETE", "?remove=true")[0] == 204
    assert ask()[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{service.url}/runs/{run}")
