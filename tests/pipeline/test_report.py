"""The report: one page that needs no other file, drawn from tiles, with all that the run found and nothing made up."""

import base64
import html
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import png, random_images, rows_of, write_shards, write_tar
from PIL import Image

from tilecov.pipeline import Job, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.observer import Observer
from tilecov.pipeline.report import make_report
from tilecov.pipeline.report.findings import find
from tilecov.pipeline.report.noise import Gaussian
from tilecov.pipeline.report.pictures import LARGEST, Look, show_diverging
from tilecov.pipeline.report.plots import energy_plot, spectrum_plot, thinned
from tilecov.pipeline.report.tables import NAMED, SHARDS, read_ledger, stages_of
from tilecov.pipeline.report.vectors import Eigenvectors
from tilecov.storage.objects import Folder
from tilecov.storage.runs import LEDGER, REPORT, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group

Array = npt.NDArray[Any]
VOID = {"meta", "link", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Checks that a page is well formed; keeps what it points to and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.points_to: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.points_to += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.points_to += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def pixels(uri: str) -> Array:
    """Return the pixels of a data URI."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 80 images of 8 x 8, some of which are skipped."""
    folder = tmp_path_factory.mktemp("report")
    shards = [str(path) for path in write_shards(folder / "shards", random_images(80, 8), 2)]
    hostile = write_tar(
        folder / "shards" / "bad.tar",
        [("<script>alert(1)</script>.png", b"no picture"), ("fine.png", png(random_images(1, 8, seed=9)[0]))],
    )
    run(Job(shards=(*shards, str(hostile)), resolution=8, out=str(folder / "run"), on_error="skip", max_skipped=0.5))
    return folder / "run"


def folder_of(path: Path) -> RunFolder:
    return RunFolder(Folder(str(path)))


def test_a_run_writes_its_report_and_the_command_writes_the_same(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (finished / REPORT).read_text(encoding="utf-8")
    assert written == make_report(folder_of(finished))
    assert run_safely(["report", str(finished), "--out", str(tmp_path / "new" / "page.html")]) == 0
    elsewhere = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert re.sub(r'<a href="[^"]*" download>([^<]*)</a>', r"artifacts/\1", written) == elsewhere
    assert capsys.readouterr().out == f"report: {tmp_path / 'new' / 'page.html'}\n"


@pytest.mark.parametrize("error", [OSError("no room"), ZeroDivisionError("a bug"), MemoryError()])
def test_a_run_is_complete_without_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Notes(Observer):
        said = ""

        def note(self, text: str) -> None:
            self.said += text

    def broken(_run: RunFolder) -> None:
        raise error

    monkeypatch.setattr("tilecov.pipeline.report.write_report", broken)
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", random_images(20, 4), 1))
    notes = Notes()
    found = run(Job(shards=shards, resolution=4, out=str(tmp_path / "run"), rank=0), notes)
    assert found["state"] == "complete"
    assert not (tmp_path / "run" / REPORT).exists()
    assert f"no report was written ({type(error).__name__}" in notes.said


def test_the_page_is_whole_and_asks_for_nothing(finished: Path) -> None:
    text = (finished / REPORT).read_text(encoding="utf-8")
    page, manifest = Page(text), json.loads((finished / "run.json").read_text())
    links = [url for url in page.points_to if not url.startswith(("data:image/png;base64,", "data:,"))]
    assert links == [f"artifacts/{name}" for name in ("U.pt", "LA.pt", "Vh.pt", "mean.pt")]
    assert all((finished / link).is_file() for link in links)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    for said in (manifest["moments_digest"], *(item["sha256"] for item in manifest["artifacts"].values())):
        assert said in page.text
    for said in ("complete", "81", "skipped 1", "alert(1)", "WienerFilter.load('run')", "Certificate"):
        assert said in page.text


def test_what_comes_from_data_is_escaped(finished: Path) -> None:
    text = (finished / REPORT).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert html.escape("<script>alert(1)</script>") in text


def test_the_three_lines_of_python_work(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    text = (finished / REPORT).read_text(encoding="utf-8")
    found = re.search(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(finished.parent)
    names: dict[str, Any] = {"x_t": torch.zeros(2, 3, 8, 8)}
    exec(html.unescape(found[1]), names)
    assert names["x_0"].shape == (2, 3, 8, 8)


def test_the_pictures_are_those_of_the_statistics(finished: Path) -> None:
    run_folder = folder_of(finished)
    manifest = run_folder.load()
    assert manifest is not None
    found = find(run_folder, manifest)
    group = open_group(run_folder.folder("statistics.zarr"))
    mean, covariance = np.asarray(group["mean"][:]), np.asarray(group["covariance"][:])  # type: ignore[index]
    shown = np.rint((mean.reshape(3, 8, 8).transpose(1, 2, 0) + 1) / 2 * 255)
    assert np.abs(pixels(found.moments[0].source) - shown).max() <= 1
    deviation = np.sqrt(np.diag(covariance)).reshape(3, 8, 8).transpose(1, 2, 0)
    assert np.abs(pixels(found.moments[1].source) - 255 * deviation / deviation.max()).max() <= 1
    assert len(found.eigen) == 24
    assert found.pixel == (4, 4)
    red = 4 * 8 + 4
    own = covariance[:64, red].reshape(8, 8) / covariance[red, red]
    expected = pixels(show_diverging(own, "").source)
    assert np.array_equal(pixels(found.covariance[1].source), expected)
    assert tuple(expected[4, 4]) == (178, 24, 43)  # the pixel itself is as red as it gets


def test_a_run_without_a_covariance_shows_the_same_covariance(tmp_path: Path) -> None:
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", random_images(30, 8), 2))
    found = []
    for name, options in (("with", {}), ("without", {"covariance": False, "svd": "dual"})):
        run(Job(shards=shards, resolution=8, out=str(tmp_path / name), **options))  # type: ignore[arg-type]
        manifest = folder_of(tmp_path / name).load()
        assert manifest is not None
        found.append(find(folder_of(tmp_path / name), manifest))
    assert [len(item.moments) for item in found] == [2, 1]
    for one, other in zip(found[0].covariance, found[1].covariance, strict=True):
        assert np.abs(pixels(one.source).astype(int) - pixels(other.source)).max() <= 1


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"rank": 0}, ("Spectrum", "Certificate", "Files", "Load it", "eigen-images", "Noisy")),
        ({"channels": 1, "rank": 5, "range": "byte"}, ("green",)),
        ({"group_by": "(.)$"}, ()),
    ],
)
def test_reports_of_other_jobs(tmp_path: Path, options: dict[str, Any], absent: tuple[str, ...]) -> None:
    channels = options.get("channels", 3)
    images = random_images(40, 4, channels)
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 2))
    run(Job(**{"shards": shards, "resolution": 4, "out": str(tmp_path / "run"), "max_groups": 64, **options}))
    page = Page((tmp_path / "run" / REPORT).read_text(encoding="utf-8"))
    for word in absent:
        assert word not in page.text
    assert ("Groups" in page.text) == ("group_by" in options)


def test_a_run_of_equal_images_has_a_report(tmp_path: Path) -> None:
    images = np.repeat(random_images(1, 4), 20, axis=0)
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 2))
    run(Job(shards=shards, resolution=4, out=str(tmp_path / "run"), rank=0))
    Page((tmp_path / "run" / REPORT).read_text(encoding="utf-8"))


def test_a_run_under_way_shows_what_it_has(finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((finished / "run.json").read_text())
    for name in reversed(list(manifest["stages"])):
        del manifest["stages"][name]
        for gone in {"certificate": ["certificate"], "artifacts": ["artifacts"], "spectrum": ["spectrum"]}.get(
            name, ()
        ):
            del manifest[gone]
        manifest |= {"state": "running"}
        (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
        page = Page(make_report(folder_of(tmp_path / "run")))
        assert ("mean image" in make_report(folder_of(tmp_path / "run"))) == ("statistics" in manifest["stages"])
        assert "to do" in page.text


def test_no_run_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(["report", str(tmp_path / "nothing")]) == 1
    assert "no run at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_shard_are_shown_where_they_are_asked_for(finished: Path, tmp_path: Path) -> None:
    images = random_images(3, 8, seed=5)
    shard = write_shards(tmp_path, images, 1)[0]
    manifest = folder_of(finished).load()
    assert manifest is not None
    found = find(folder_of(finished), manifest, [str(shard)])
    assert not found.are_drawn
    for picture, image in zip(found.clean, images, strict=True):
        assert np.abs(pixels(picture.source).astype(int) - image).max() <= 1
    page = Page(make_report(folder_of(finished), shards=[str(shard)]))
    assert "drawn from the Gaussian" not in page.text
    assert str(shard) in page.text


def test_a_report_that_cannot_be_written_is_said_and_fails_nothing(
    shards: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_run: RunFolder) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tilecov.pipeline.report.write_report", full)
    assert run_safely(["run", *shards(), "-r", "4", "--out", str(tmp_path / "run")]) == 0
    assert "no report was written" in capsys.readouterr().err


def vectors_of(tmp_path: Path, size: int, rank: int, tile: int) -> tuple[Eigenvectors, Array]:
    u, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))
    tiles = TileMatrix.create(
        open_group(Folder(str(tmp_path / "g")), writable=True), "u", (size, rank), (tile, tile), "float32"
    )
    for i, rows in enumerate(tiles.rows.spans()):
        for j, columns in enumerate(tiles.columns.spans()):
            tiles.write(i, j, u[rows, columns].astype(np.float32)[:, : min(tile, rank)])
    return Eigenvectors(tiles), u[:, :rank]


@pytest.mark.parametrize(("size", "rank", "tile"), [(48, 48, 16), (50, 37, 16), (20, 3, 64)])
def test_products_with_tiles_are_those_with_the_matrix(tmp_path: Path, size: int, rank: int, tile: int) -> None:
    vectors, u = vectors_of(tmp_path, size, rank, tile)
    factors, panel = np.random.default_rng(2).standard_normal((2, max(size, rank), 5)).astype(np.float32)
    times, projected = vectors.both(factors[:rank], panel[:size])
    np.testing.assert_allclose(times, u @ factors[:rank], atol=1e-5)
    np.testing.assert_allclose(projected, u.T @ panel[:size], atol=1e-5)
    np.testing.assert_allclose(vectors.leading(19), u[:, :19].T, atol=1e-6)
    np.testing.assert_allclose(vectors.rows([0, size - 1]), u[[0, -1]], atol=1e-6)


def test_estimates_are_those_of_the_wiener_filter(tmp_path: Path) -> None:
    import torch

    from tilecov.pipeline import WienerFilter

    vectors, u = vectors_of(tmp_path, 48, 20, 16)
    values, mean = np.geomspace(3, 1e-3, 20), np.linspace(-1, 1, 48)
    gaussian = Gaussian(mean, values, vectors, float(values.sum()), 1.0)
    tensors = [torch.from_numpy(array.copy()) for array in (u, values, u.T, mean)]
    for images, levels in (gaussian.draw(4), gaussian.take(np.random.default_rng(3).random((4, 48)))):
        assert images.shape == (4, 48)
        for level in levels:
            noisy = torch.from_numpy(level.noisy * level.alpha_bar**0.5)
            expected = WienerFilter(*tensors).denoise(noisy, level.alpha_bar).numpy()
            np.testing.assert_allclose(level.estimates, expected, atol=1e-4)


def test_the_expected_error_is_the_one_found(tmp_path: Path) -> None:
    vectors, _ = vectors_of(tmp_path, 48, 48, 16)
    gaussian = Gaussian(np.zeros(48), np.geomspace(3, 1e-3, 48), vectors, 1.0, 2.0)
    images, levels = gaussian.draw(2000)
    assert np.abs(images.std(axis=0).mean()) > 0.1
    for level in levels:
        assert level.error == pytest.approx(level.expected, rel=0.05)
        assert level.noisy_error == pytest.approx(level.sigma**2, rel=0.05)


def test_large_pictures_are_made_smaller() -> None:
    picture = Look((3, 700, 700), 0, 1).show(np.full(3 * 700 * 700, 0.5), "gray")
    assert pixels(picture.source).shape == (LARGEST, LARGEST, 3)
    assert (pixels(picture.source) == 128).all()


@pytest.mark.parametrize("count", [1, 2, 5, 3000])
def test_plots_go_through_their_points(count: int) -> None:
    values = 2.0 / np.arange(1, count + 1) ** 2
    for plot in (spectrum_plot(values), energy_plot(values, float(values.sum()))):
        places = np.array([list(map(float, point.split())) for point in plot.path[1:].split(" L")])
        assert np.isfinite(places).all()
        assert (places[:, 0] >= 61).all()
        assert (places[:, 0] <= 471).all()
        assert (np.diff(places[:, 0]) >= 0).all()
        assert len(places) <= 400
    assert "100.0%" not in energy_plot(values, 2 * float(values.sum())).summary


def test_the_energy_plot_says_where_the_shares_are() -> None:
    plot = energy_plot(np.array([5.0, 4.0, 1.0]), 10.0)
    assert [mark.text for mark in plot.marks][:2] == ["50.0% at rank 1", "90.0% at rank 2"]
    assert list(thinned(5)) == [1, 2, 3, 4, 5]


def test_long_ledgers_are_cut_and_say_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    skipped = [{"key": f"k{i}", "reason": "bad"} for i in range(NAMED)]
    line = {"url": "s", "size": 1, "samples": 60, "used": 10, "passed_over": 0, "skipped": skipped, "error": "cut"}
    folder.write_ledger([line] * (SHARDS + 3))
    found = read_ledger(folder)
    assert (len(found.shards), found.more_shards) == (SHARDS, 3)
    assert (len(found.skipped), found.more_skipped) == (NAMED, NAMED * (SHARDS + 2))
    assert (tmp_path / LEDGER).stat().st_size > 0


def test_bars_compare_with_the_largest(finished: Path) -> None:
    manifest = json.loads((finished / "run.json").read_text())
    rows = stages_of(manifest)
    shares = [share for _, *both in rows for item in both for share in (item.share, item.predicted_share)]
    assert max(shares) == 100
    assert min(shares) >= 0


def test_memory_stays_at_a_few_vectors_and_tiles(tmp_path: Path) -> None:
    """2,304 values in tiles of 1,024: neither matrix is ever whole, 21 MB each; 100 vectors would be 0.9 MB."""
    images = random_images(30, 48, 1)
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 1))
    run(Job(shards=shards, resolution=48, channels=1, rank=20, out=str(tmp_path / "run")))
    folder = folder_of(tmp_path / "run")
    make_report(folder)  # imports are done
    tracemalloc.start()
    make_report(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 4 * 1024**2 + 200 * 4 * 2304, peak
    assert rows_of(images).shape == (30, 2304)
