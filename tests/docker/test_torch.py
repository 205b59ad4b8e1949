"""Where docker/torch.sh takes torch from, with a stub for pip: nothing is installed."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from stack import DOCKER, ROOT

INDEX = "https://example.invalid/whl/cpu"
WANTED = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
WHEEL = f"{WANTED.replace('==', '-')}+cpu-cp311-cp311-linux_x86_64.whl"


class Installed:
    """What pip was told, and how the script ended."""

    def __init__(self, folder: Path, accelerator: str, index: str, wheels: tuple[str, ...]) -> None:
        package, target = folder / "package", folder / "target" / "bin"
        for each in (folder / "wheels", folder / "bin", target, package / "include"):
            each.mkdir(parents=True)
        for name in wheels:
            (folder / "wheels" / name).touch()
        stubs = {folder / "bin" / "python3": f'echo "$@" > {folder}/told', target / "python": f"echo {package}"}
        for path, line in stubs.items():
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)
        (folder / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
        self.done = subprocess.run(
            ["bash", DOCKER / "torch.sh"], cwd=folder, text=True, capture_output=True, check=False,
            env={
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "WHEELS": str(folder / "wheels"),
                "TARGET": str(folder / "target"), "ACCELERATOR": accelerator, "TORCH_INDEX": index,
            },
        )  # fmt: skip
        told = folder / "told"
        self.told = told.read_text().split() if told.exists() else []
        others = folder / "others.txt"
        self.constraints = others.read_text().splitlines() if others.exists() else []
        self.is_trimmed = not (package / "include").exists()


@pytest.mark.parametrize("index", ["", INDEX])
def test_a_cpu_wheel_in_the_folder_comes_first(tmp_path: Path, index: str) -> None:
    found = Installed(tmp_path, "cpu", index, (WHEEL,))
    assert found.done.returncode == 0, found.done.stderr
    assert found.told[found.told.index("--find-links") + 1] == str(tmp_path / "wheels")
    assert "--extra-index-url" not in found.told
    assert found.told[-1] == f"{WANTED}+cpu"
    assert found.is_trimmed


@pytest.mark.parametrize(
    "wheels", [(), ("torch-1.0.0+cpu-cp311-cp311-linux_x86_64.whl",), (WHEEL.replace("+cpu", ""),)]
)
def test_without_that_wheel_the_index_is_asked(tmp_path: Path, wheels: tuple[str, ...]) -> None:
    found = Installed(tmp_path, "cpu", INDEX, wheels)
    assert found.told[found.told.index("--extra-index-url") + 1] == INDEX
    assert "--find-links" not in found.told
    assert found.told[-1] == f"{WANTED}+cpu"


def test_cuda_takes_neither(tmp_path: Path) -> None:
    """Either would bring the CPU's torch, which pip takes for the newer one."""
    found = Installed(tmp_path, "cuda", INDEX, (WHEEL,))
    assert found.done.returncode == 0, found.done.stderr
    assert {"--find-links", "--extra-index-url"} & set(found.told) == set()
    assert found.told[-1] == WANTED


@pytest.mark.parametrize(("accelerator", "said"), [("cpu", "TORCH_INDEX is empty"), ("tpu", "give cpu or cuda")])
def test_what_cannot_be_is_said(tmp_path: Path, accelerator: str, said: str) -> None:
    found = Installed(tmp_path, accelerator, "", ())
    assert (found.done.returncode, found.told) == (1, [])
    assert said in found.done.stderr


def test_all_that_torch_requires_is_pinned(tmp_path: Path) -> None:
    """But torch itself: its own pin would refuse the local version +cpu. The builder has the same setuptools."""
    found = Installed(tmp_path, "cuda", "", ())
    assert [line for line in found.constraints if line.startswith("torch==")] == []
    setuptools = next(line for line in found.constraints if line.startswith("setuptools=="))
    assert re.findall(r"'(setuptools==[^']+)'", (DOCKER / "Dockerfile").read_text()) == [setuptools]
    assert {"sympy", "networkx", "filelock", "fsspec"} < {line.split("==")[0] for line in found.constraints}
