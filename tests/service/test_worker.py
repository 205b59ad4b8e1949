"""What the service's own processes do, called as they call it."""

from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import random_images, write_shards

from tilecov.pipeline import run
from tilecov.pipeline.errors import CertificateError
from tilecov.pipeline.service.worker import Request, carry_out


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    """Return a function that gives the request for a job over random images."""
    write_shards(tmp_path / "data", random_images(30, 4), 2)

    def make(**fields: Any) -> Request:
        job = {"shards": [f"{tmp_path}/data/*.tar"], "resolution": 4, "out": str(tmp_path / "run"), **fields}
        return Request(job=job, options={}, allow=[str(tmp_path / "data")], limit=4 << 30)

    return make


def test_a_run_that_falls_short_leaves_its_report(
    request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(*arguments: Any) -> None:
        run(*arguments)
        (tmp_path / "run" / "report.html").unlink()
        raise CertificateError("the spectrum falls short")

    monkeypatch.setattr("tilecov.pipeline.service.worker.run", short)
    with pytest.raises(typer.Exit):
        carry_out(request_of())
    assert "falls short" in capsys.readouterr().err
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Certificate" in report
    assert 'href="artifacts' not in report
