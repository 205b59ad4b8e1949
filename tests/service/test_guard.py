"""Every rule of safety before a request, each with one that tries to break it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import JOB, WORKERS, end, service, state, until, workers_of
from fastapi.testclient import TestClient

from tilecov.pipeline.service.app import create_app
from tilecov.pipeline.service.guard import COOKIE, LARGEST
from tilecov.pipeline.service.names import FILES
from tilecov.pipeline.service.settings import Settings

TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "hunter2hunter2"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with service(Settings(str(tmp_path / "root")), monkeypatch) as found:
        yield found


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A service that asks for a token, and has credentials of its operator."""
    settings = Settings(str(tmp_path / "root"), token=TOKEN, storage_options={"secret": SECRET}, host="0.0.0.0")
    with service(settings, monkeypatch) as found:
        yield found


def routes(settings: Settings) -> list[tuple[str, str]]:
    """Return every method and path that the service knows, pages included."""
    found: list[tuple[str, str]] = []
    stack: list[Any] = list(create_app(settings).routes)
    while stack:
        route = stack.pop()
        stack += list(getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", ()))
        if getattr(route, "methods", None):
            found += [(method, route.path) for method in route.methods]
    return found


def test_nothing_but_health_and_login_answers_without_the_token(closed: TestClient, tmp_path: Path) -> None:
    every = routes(Settings(str(tmp_path / "other")))
    assert {"/healthz", "/runs", "/runs/{id}/artifacts/{name}", "/metrics", "/openapi.json", "/"} <= {
        p for _, p in every
    }
    for method, path in every:
        if path in {"/healthz", "/login"}:
            continue
        answer = closed.request(
            method, path.format(id="20260101T000000-" + "0" * 12, name="U.pt"), follow_redirects=False
        )
        if method == "POST" and answer.status_code == 415:
            answer = closed.request(method, path, json=JOB)
        assert answer.status_code == 401, (method, path)
    assert closed.get("/healthz").json() == {"status": "ok"}
    assert closed.get("/nowhere").status_code == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Basic {TOKEN}", TOKEN, "Bearer \xff\xfe"],
)
def test_wrong_tokens_are_refused(closed: TestClient, header: str) -> None:
    assert closed.get("/runs", headers={"Authorization": header.encode("latin-1")}).status_code == 401
    assert closed.get("/runs", headers={"Cookie": f"{COOKIE}={TOKEN}"}).status_code == 401  # it is no session
    assert closed.get(f"/runs?token={TOKEN}").status_code == 401
    assert closed.get("/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_logs_in_and_keeps_no_token(closed: TestClient) -> None:
    page = closed.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert closed.post("/login", data={"token": "wrong"}).status_code == 401
    answer = closed.post("/login", data={"token": TOKEN}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert closed.get("/").status_code == 200
    assert closed.get("/static/page.js").status_code == 200


def test_pages_of_other_sites_can_do_nothing(client: TestClient) -> None:
    for headers in (
        {"Origin": "https://evil.com"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:9999"},
    ):  # fmt: skip
        assert client.post("/runs", json=JOB, headers=headers).status_code == 403
        assert client.delete("/runs/x", headers=headers).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert client.post("/runs", content=json.dumps(JOB), headers={"Content-Type": kind}).status_code == 415
    assert WORKERS == []
    assert client.post("/runs", json=JOB, headers={"Origin": "http://127.0.0.1"}).status_code == 201


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8750", "127.0.0.1.evil.com", "169.254.169.254", "localhost.evil"]
)
def test_a_name_that_is_led_to_this_machine_is_not_answered(client: TestClient, closed: TestClient, host: str) -> None:
    assert client.get("/runs", headers={"Host": host}).status_code == 421
    assert client.get("/healthz", headers={"Host": host}).status_code == 421
    for own in ("localhost:8750", "127.0.0.1", "[::1]:8750"):
        assert client.get("/healthz", headers={"Host": own}).status_code == 200
    assert closed.get("/healthz", headers={"Host": host}).status_code == 200  # a token is known under any name


@pytest.mark.parametrize("text", ["[", "]", "[::1", "[:"])
def test_hosts_and_origins_that_are_none_are_refused(
    client: TestClient, closed: TestClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    for who in (client, closed):
        for path in ("/healthz", "/login", "/runs", "/nowhere"):
            assert who.get(path, headers={"Host": text}).status_code == 400
        for path in ("/login", "/runs"):
            assert who.post(path, json=JOB, headers={"Origin": f"http://{text}"}).status_code == 403
    assert "Traceback" not in caplog.text


def test_bodies_have_a_limit(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    large = b'{"shards": ["' + b"x" * LARGEST + b'"]}'
    assert client.post("/runs", content=large, headers=headers).status_code == 413
    assert client.post("/runs", content=b"{}", headers={**headers, "Content-Length": "-1"}).status_code in {400, 413}

    def pieces() -> Iterator[bytes]:
        for _ in range(LARGEST // 4096 + 2):
            yield b" " * 4096

    assert client.post("/runs", content=pieces(), headers=headers).status_code == 413
    assert client.request("DELETE", "/runs/x", content=large).status_code == 413
    for body in (b"", b"{", b"[" * 100_000, b"nul", b"\xff\xfe", b'{"resolution": ' + b"9" * 5000 + b"}", b"1e400"):
        assert client.post("/runs", content=body, headers=headers).status_code in {400, 422}, body[:20]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"storage_options": {"secret": SECRET}}, "storage_options"),
        ({"storage_options": {"client_kwargs": {"endpoint_url": "http://169.254.169.254"}}}, "storage_options"),
        ({"storage_options": SECRET}, "storage_options"),
        ({"out": "/etc/cron.d"}, "out"),
        ({"out": "../../x"}, "out"),
        ({"scheduler": "tcp://evil.com:8786"}, "scheduler"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": SECRET}, "resolution"),
        ({"shards": []}, "shards"),
        ({"shards": [SECRET] * 20_000}, "shards"),
        ({"unknown": SECRET}, "unknown"),
        ({"group_by": "(" * 5000}, "group_by"),
        ({"group_by": "a" * 201}, "group_by"),
        ({"samples": 1 << 70}, "samples"),
        ({"memory": "12 parsecs"}, "memory"),
        ({"rank": "energy=nan"}, "rank"),
        ({"rank": 49}, "rank"),
        ({"svd": "dual", "augment": "hflip"}, "augment"),
    ],
)
def test_faults_name_the_field_and_repeat_nothing(client: TestClient, changes: dict[str, Any], field: str) -> None:
    for route in ("/plan", "/runs"):
        answer = client.post(route, json={**JOB, **changes})
        assert answer.status_code == 422
        assert [fault["loc"][1] for fault in answer.json()["detail"]] == [field]
        assert SECRET not in answer.text
        assert {*answer.json()["detail"][0]} == {"loc", "msg", "type"}


@pytest.mark.parametrize("length", [195, 5000])
def test_the_service_itself_compiles_no_expression(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    def compiled(text: str) -> None:
        raise AssertionError(f"compiled: {text[:20]}")

    monkeypatch.setattr("tilecov.pipeline.grouping.Grouping.parse", compiled)
    hostile = "(?i)" + "[\x01-\uffff]" * (length // 5)  # 5,000 letters take 4 s
    for route in ("/plan", "/runs"):
        answer = client.post(route, json={**JOB, "group_by": hostile})
        assert answer.status_code == (422 if length > 200 else 201 if route == "/runs" else 200)


def test_only_files_of_the_list_are_given(client: TestClient, tmp_path: Path) -> None:
    run = client.post("/runs", json=JOB).json()["id"]
    end(client, workers_of(client, 1)[0])
    until(lambda: state(client, run) == "complete")
    (tmp_path / "root" / "runs" / run / "other.txt").write_text("secret")
    for name in (
        "other.txt", "lease.json", "..%2frun.json", "%2e%2e%2f%2e%2e%2fqueue", "../../lease.json", "artifacts%2fU.pt",
        "%2fetc%2fpasswd", "U.pt%00", "u.pt", "*", "statistics.zarr", "x" * 3000,
    ):  # fmt: skip
        assert client.get(f"/runs/{run}/artifacts/{name}").status_code in {404, 422}, name
    for odd in ("../lease.json", "20260101T000000-000000000000", "x" * 5000, "\u2028"):
        assert client.get(f"/runs/{odd}").status_code in {404, 422}
    assert {client.get(f"/runs/{run}/artifacts/{name}").status_code for name in FILES} == {200, 404}
    assert client.get("/static/..%2ftemplates%2fruns.html").status_code == 404
    assert client.get("/static/page.css").status_code == 404


def test_bugs_are_kept_inside(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: Any) -> None:
        raise KeyError(f"a bug at s3://key:{SECRET}@bucket")

    monkeypatch.setattr("tilecov.pipeline.service.api.line_of", broken)
    client.post("/runs", json=JOB)
    answer = client.get("/runs")
    assert answer.status_code == 500
    assert "bug" not in answer.text
    assert "Traceback" not in answer.text
    assert "KeyError" in caplog.text  # the operator's log has it


def test_credentials_of_the_operator_are_nowhere(closed: TestClient, tmp_path: Path) -> None:
    own = {"Authorization": f"Bearer {TOKEN}"}
    run = closed.post("/runs", json=JOB, headers=own).json()["id"]
    (worker,) = workers_of(closed, 1)
    assert worker.request["options"] == {"secret": SECRET}  # it goes to the worker's stdin and nowhere else
    worker.listener({"event": "run_failed", "error": f"https://h/x?X-Amz-Signature={SECRET} refused"})
    end(closed, worker, 1)
    until(lambda: closed.get(f"/runs/{run}", headers=own).json()["state"] == "failed")
    told = [
        closed.get(path, headers=own).text
        for path in (
            "/runs",
            f"/runs/{run}",
            f"/runs/{run}/page",
            f"/runs/{run}/events",
            "/metrics",
            "/",
            "/openapi.json",
        )
    ]
    kept = [path.read_text() for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert kept
    for text in (*told, *kept):
        assert SECRET not in text
        assert TOKEN not in text


def test_no_setting_of_the_operators_is_in_the_description(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["Submission"]["properties"]
    assert not {"storage_options", "out", "scheduler"} & set(fields)
    assert {"shards", "resolution", "rank"} <= set(fields)
    body = schema["paths"]["/runs"]["post"]["requestBody"]["content"]["application/json"]
    assert {"whole", "leading"} == set(body["examples"])


def test_pages_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/login"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy


def test_what_comes_from_data_is_escaped_on_pages(client: TestClient) -> None:
    shards = ["/data/<script>alert(1)</script>.tar"]
    run = client.post("/runs", json={**JOB, "shards": shards}).json()["id"]
    (worker,) = workers_of(client, 1)
    worker.listener({"event": "run_failed", "error": "<img src=x onerror=alert(1)>"})
    end(client, worker, 1)
    until(lambda: state(client, run) == "failed")
    for path in ("/", f"/runs/{run}/page"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;" in text
