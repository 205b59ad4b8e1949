"""Docs cannot lie: every command and option is documented, and what README shows is what there is."""

import re
from pathlib import Path

import pytest
import typer

from tilecov import pipeline
from tilecov.pipeline.cli import app, run_safely

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`tilecov {name} " in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name].help
    assert [option.name for option in COMMANDS[name].params if not getattr(option, "help", None)] == []
    assert run_safely([name, "--help"]) == 0
    assert f"tilecov {name}" in capsys.readouterr().out


def test_every_option_that_the_readme_names_exists() -> None:
    options = [option for command in COMMANDS.values() for option in command.params]
    known = {text for option in options for text in [*option.opts, *option.secondary_opts]} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_every_name_that_the_readme_imports_exists() -> None:
    for line in re.findall(r"from tilecov\.pipeline import (.+)", README):
        for name in line.split("#")[0].split(","):
            assert hasattr(pipeline, name.strip())


def test_no_module_is_longer_than_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for part in ("pipeline", "storage")
        for path in (ROOT / part).rglob("*.py")
    }
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = contributing[contributing.index("## Why each") :]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *extras["dev"], *extras["bench"]]
    assert [name for name in every if re.split(r"[<>=]", name)[0].lower() not in table.lower()] == []
