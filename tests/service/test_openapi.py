"""Requests of all kinds, made from the OpenAPI description: no error of the service's own, and nothing leaks."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import random_images, write_shards
from running import SECRET, Service, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = 60
LEAKS = re.compile(r"Traceback|File \"|site-packages|root:x:0|hunter2hunter2|" + re.escape(SECRET))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openapi")
    write_shards(folder / "data", random_images(30, 8), 2)
    options = ["--storage-options", json.dumps({"password": "hunter2hunter2"}), "--memory", "4GiB"]
    with serving(folder / "root", [str(folder / "data")], options, token=SECRET) as found:
        run = found.client.submit({"shards": [f"{folder}/data/*.tar"], "resolution": 4})
        found.client.wait(run["id"])
        yield found


def operations(schema: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method.upper()) for path, item in schema["paths"].items() for method in item}


def exercise(operation: Any, mode: Any, headers: dict[str, str], known: str) -> int:
    """Ask for one operation in many ways, for runs that are there and that are not; return how many were asked."""
    from hypothesis import HealthCheck, Phase, given, settings

    asked = 0
    has_id = "{id}" in operation.path and operation.method.upper() != "DELETE"  # what is asked for stays

    @settings(
        max_examples=EXAMPLES, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal asked
        asked += 1
        check(case, headers)
        if has_id:
            case.path_parameters["id"] = known
            check(case, headers)

    ask()
    return asked


def check(case: Any, headers: dict[str, str]) -> None:
    answer = case.call(headers=headers, timeout=120)
    assert answer.status_code < 500 or answer.status_code in {503, 504}, (case, answer.status_code)
    assert not LEAKS.search(answer.content.decode(errors="replace")), case
    if "events" not in case.operation.path:
        case.validate_response(answer, checks=[_described])


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_no_request_breaks_the_service(service: Service, kind: str) -> None:
    """Requests that fit the description, and requests that do not."""
    import schemathesis

    known = service.client.runs()[0]["id"]
    headers = {"Authorization": f"Bearer {SECRET}"}
    api = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=headers)
    seen: set[tuple[str, str]] = set()
    for result in api.get_all_operations():
        operation = result.ok()
        seen.add((operation.path, operation.method.upper()))
        takes = bool(operation.body) or any(operation.iter_parameters())
        if takes or kind == "positive":
            asked = exercise(operation, schemathesis.GenerationMode(kind), headers, known)
            assert asked > (EXAMPLES // 4 if takes else 0), operation.label
    assert seen == operations(api.raw_schema)
    assert "Traceback" not in service.log.read_text()


def _described(_context: Any, response: Any, case: Any) -> None:
    """Every status is one that the description names, and JSON has the form that it gives."""
    raw = case.operation.definition.raw["responses"]
    named = {str(status) for status in raw} | {"400", "401", "403", "404", "405", "411", "413", "415", "422"}
    assert str(response.status_code) in named, (case.operation.label, response.status_code)


def test_every_route_asks_for_the_token(service: Service) -> None:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{service.url}/openapi.json", headers={"Authorization": f"Bearer {SECRET}"})
    with urllib.request.urlopen(request) as answer:
        schema = json.loads(answer.read())
    assert schema["security"] == [{"token": []}]
    for path, method in operations(schema):
        url = service.url + path.replace("{id}", "20260101T000000-000000000000").replace("{name}", "U.pt")
        body = b"{}" if method == "POST" else None
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(asked) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            error.close()
            status = error.code
        assert status == (200 if path == "/healthz" else 401), (method, path)


def test_the_examples_are_jobs() -> None:
    from tilecov.pipeline.service.submission import EXAMPLES as GIVEN
    from tilecov.pipeline.service.submission import Submission

    for example in GIVEN.values():
        assert Submission(**example["value"]).fields()  # type: ignore[arg-type]


def test_schema_is_one_file(tmp_path: Path) -> None:
    from tilecov.pipeline.service.app import create_app
    from tilecov.pipeline.service.settings import Settings

    schema = create_app(Settings(str(tmp_path), allow=("/srv",))).openapi()
    assert operations(schema) >= {("/plan", "POST"), ("/runs", "POST"), ("/runs/{id}/artifacts/{name}", "GET")}
    assert "/srv" not in json.dumps(schema)
