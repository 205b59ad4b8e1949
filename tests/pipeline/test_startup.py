"""What the package and the command line import before it is needed: nothing heavy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest

import tilecov.pipeline.plan
import tilecov.pipeline.run
from tilecov.pipeline import Job, run

HEAVY = {"PIL", "dask", "imagecodecs", "jinja2", "numpy", "scipy", "torch", "zarr"}


def imported(statements: str) -> set[str]:
    """Return the top-level modules that a new interpreter has after these statements."""
    code = (
        f"{statements}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(said.splitlines()[-1]))


def cli(*arguments: str) -> str:
    return f"from tilecov.pipeline.cli import run_safely\nrun_safely({list(arguments)!r})"


def test_help_imports_neither_numbers_nor_stores_nor_models() -> None:
    found = imported(cli("--help"))
    assert "typer" in found
    assert found & (HEAVY | {"fsspec", "pydantic"}) == set()


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_status_imports_no_numbers(as_json: list[str], shards: Callable[..., list[str]], tmp_path: Path) -> None:
    run(Job(shards=tuple(shards(count=5, resolution=2)), resolution=2, out=str(tmp_path / "run")))
    found = imported(cli("status", str(tmp_path / "run"), *as_json))
    assert "fsspec" in found  # the run was read
    assert found & HEAVY == set()


def test_plan_and_run_are_functions_whatever_was_imported() -> None:
    assert isinstance(tilecov.pipeline.plan, FunctionType)
    assert isinstance(tilecov.pipeline.run, FunctionType)
    assert {"plan", "run"} <= set(tilecov.pipeline.__all__)


def test_every_name_of_the_package_is_there() -> None:
    assert [name for name in tilecov.pipeline.__all__ if getattr(tilecov.pipeline, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tilecov.pipeline.nothing
