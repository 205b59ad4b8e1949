"""The pages as people use them, in a browser without a screen."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import random_images, write_shards
from running import SECRET, Service, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="the service's pages are not tested: there is no chromium on the PATH; apt-get install chromium",
    ),
]
SCREENSHOTS = "TILECOV_SCREENSHOTS"
"""The variable that names the folder for pictures of the pages."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "data"
    write_shards(folder, random_images(300, 16), 3)
    return folder


@pytest.fixture(scope="module")
def service(data: Path) -> Iterator[Service]:
    with serving(data.parent / "root", [str(data)], token=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def complete(service: Service, data: Path) -> str:
    """A complete run."""
    run = service.client.submit({"shards": [f"{data}/*.tar"], "resolution": 16})
    assert service.client.wait(run["id"])["state"] == "complete"
    return str(run["id"])


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: "Browser", service: Service) -> Iterator["Page"]:
    """A page of one who has shown the token; whatever it complains of fails the test."""
    complaints: list[str] = []
    context = browser.new_context(accept_downloads=True, viewport={"width": 1200, "height": 900})
    found = context.new_page()
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    found.on("dialog", lambda dialog: dialog.accept())
    found.goto(service.url)
    assert found.url == f"{service.url}/login"
    found.get_by_label("Token").fill(SECRET)
    found.get_by_role("button", name="Go on").click()
    found.wait_for_url(f"{service.url}/")
    yield found
    context.close()
    # The browser itself reports answers that refuse something; everything else is ours.
    assert [text for text in complaints if "status of 422" not in text and "status of 503" not in text] == []


def fill(page: "Page", data: Path, **fields: Any) -> None:
    page.get_by_label("Shards").fill(f"{data}/*.tar")
    page.get_by_label("Resolution").fill("16")
    for name, value in fields.items():
        page.get_by_label(name).fill(value)
    page.get_by_role("button", name="Preview the plan").click()


def test_a_run_from_the_form_to_its_filter(page: "Page", service: Service, data: Path, tmp_path: Path) -> None:
    import torch

    before = service.client.runs()
    fill(page, data)
    preview = page.locator("#preview")
    preview.get_by_role("heading", name="Plan").wait_for()
    assert "d = 768" in preview.inner_text()
    assert service.client.runs() == before  # a preview submits nothing
    page.get_by_role("button", name="Submit this run").click()
    page.wait_for_url("**/page")
    page.get_by_role("heading", name="Certificate").wait_for(timeout=60_000)  # watched until it was complete
    images = page.locator("img.picture")
    assert images.count() > 80
    for at in range(images.count()):
        images.nth(at).scroll_into_view_if_needed()
        assert images.nth(at).evaluate("image => image.complete && image.naturalWidth >= 16")
        assert images.nth(at).get_attribute("alt")
    assert page.locator(".plots svg").count() == 2
    with page.expect_download() as download:
        page.get_by_role("link", name="U.pt", exact=True).click()
    download.value.save_as(tmp_path / "U.pt")
    assert torch.load(tmp_path / "U.pt", weights_only=True).shape == (768, 768)
    page.get_by_role("link", name="The report alone").click()
    page.get_by_role("heading", name="Certificate").wait_for()
    page.go_back()
    page.get_by_role("link", name="All runs").click()
    row = page.locator("#runs tr").first
    assert "complete" in row.inner_text()


def test_a_fault_is_shown_at_its_field(page: "Page", data: Path) -> None:
    fill(page, data.parent)
    fault = page.locator("#fault")
    fault.wait_for()
    assert "not below an allowed prefix" in fault.inner_text()
    assert page.get_by_label("Shards").get_attribute("aria-invalid") == "true"
    assert not page.get_by_role("button", name="Submit this run").is_visible()
    page.get_by_label("Resolution").fill("8")
    assert not fault.is_visible()


def test_a_run_is_cancelled_and_removed(page: "Page", service: Service, data: Path) -> None:
    # The list stays as it is without a reload, and shows what others do.
    page.get_by_role("heading", name="New run").wait_for()
    job = {"shards": [f"{data}/*.tar"], "resolution": 48}
    runs = [service.client.submit(job)["id"] for _ in range(2)]
    row = page.locator(f'tr[data-run="{runs[1]}"]')
    row.wait_for()
    row.get_by_role("link").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Remove").wait_for()
    assert page.locator("#state").inner_text() == "cancelled"
    page.get_by_role("button", name="Remove").click()
    page.wait_for_url(f"{service.url}/")
    page.locator(f'tr[data-run="{runs[1]}"]').wait_for(state="detached")
    service.client.cancel(runs[0])


def test_a_stream_that_is_refused_is_asked_for_later(page: "Page", service: Service, data: Path) -> None:
    refused: list[str] = []

    def refuse_once(route: "Route") -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, content_type="application/json", body='{"detail": "too many clients"}')

    page.route("**/events", refuse_once)
    run = service.client.submit({"shards": [f"{data}/*.tar"], "resolution": 24})["id"]
    page.goto(f"{service.url}/runs/{run}/page")
    page.get_by_role("heading", name="Certificate").wait_for(timeout=60_000)
    assert len(refused) == 1


def open_page(browser: "Browser", width: int, scheme: Any) -> "Page":
    """Open a page that shows the token with each request; its context is closed with the browser."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme,
        extra_http_headers={"Authorization": f"Bearer {SECRET}"},
    )  # fmt: skip
    return context.new_page()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_screen(
    browser: "Browser", service: Service, complete: str, width: int, scheme: Any
) -> None:
    page = open_page(browser, width, scheme)
    for path in ("/", f"/runs/{complete}/page", f"/runs/{complete}/report", "/login"):
        page.goto(f"{service.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"
        assert light == (scheme == "light")
    page.context.close()


@pytest.mark.skipif(not os.environ.get(SCREENSHOTS), reason=f"{SCREENSHOTS} names no folder for pictures of the pages")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_of_the_pages(
    browser: "Browser", service: Service, complete: str, data: Path, width: int, scheme: Any
) -> None:
    folder = Path(os.environ[SCREENSHOTS])
    folder.mkdir(parents=True, exist_ok=True)
    page = open_page(browser, width, scheme)

    def take(name: str) -> None:
        path = folder / f"{name}-{scheme}-{width}.png"
        page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 5000

    page.goto(service.url)
    page.locator("#runs tr").first.wait_for()
    take("runs")
    fill(page, data)
    page.locator("#preview").get_by_role("heading", name="Plan").wait_for()
    take("form")
    for name, path in (("run", "page"), ("report", "report")):
        page.goto(f"{service.url}/runs/{complete}/{path}")
        page.get_by_role("heading", name="Certificate").wait_for()
        take(name)
    page.context.close()
