"""The image, for real: its size, what it holds and what it does not."""

import json
import re
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from engine import Engine
from stack import DOCKER, KEY, SECRET, SECRETS, USER, Stack, built, until

pytestmark = pytest.mark.slow
LARGEST = 350e6  # bytes of the image beside torch and what torch alone requires
README = (DOCKER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with built(engine, tmp_path_factory.mktemp("image"), "scheduler") as found:
        yield found


# Packages lie in two environments: torch's, with all that it requires, and tilecov's, with what is missing there.
SIZES = """
import json, pathlib, sys
from importlib.metadata import distribution, distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

found = {}
for package in distributions(path=[path for path in sys.path if path.startswith("/opt/torch/")]):
    paths = {pathlib.Path(package.locate_file(file)).resolve() for file in package.files}
    found[canonicalize_name(package.name)] = sum(path.stat().st_size for path in paths if path.is_file())

needed, waiting = set(), [Requirement("tilecov[s3,http,service]")]
while waiting:
    wanted = waiting.pop()
    for line in distribution(wanted.name).requires or ():
        required = Requirement(line)
        name = canonicalize_name(required.name)
        applies = not required.marker or any(required.marker.evaluate({"extra": each}) for each in ("", *wanted.extras))
        if applies and name != "torch" and name not in needed:
            needed.add(name)
            waiting.append(required)
print(json.dumps([found.pop("torch"), sum(size for name, size in found.items() if name not in needed)]))
"""


def test_the_image_is_small_beside_torch(engine: Engine, stack: Stack) -> None:
    whole = json.loads(engine.docker("image", "inspect", stack.image))[0]["Size"]
    torch_, own = json.loads(engine.docker("run", "--rm", "--entrypoint", "python3", stack.image, "-c", SIZES))
    rest = whole - torch_ - own
    print(f"{whole / 1e6:.0f} MB: torch {torch_ / 1e6:.0f}, what it requires {own / 1e6:.0f}, rest {rest / 1e6:.0f}")  # noqa: T201
    assert own > 30e6  # SymPy alone
    assert 50e6 < rest < LARGEST
    if engine.folder is not None:  # else on another base
        said = re.search(
            r"image's (\d+) MB, (\d+) are torch itself and (\d+) what .*?rest.*?has (\d+)", README, re.DOTALL
        )
        assert said is not None
        assert [int(number) * 1e6 for number in said.groups()] == pytest.approx([whole, torch_, own, rest], rel=0.1)


def test_the_image_has_what_was_compiled_and_no_compiler(engine: Engine, stack: Stack) -> None:
    code = "from tilecov.pipeline.pixels import is_compiled; from tilecov.storage import _tarwalk; print(is_compiled())"
    python = ("run", "--rm", "--entrypoint", "python3", stack.image, "-c")
    assert engine.docker(*python, code).strip() == "True"
    found = "import shutil; print([name for name in ('cc', 'gcc', 'as') if shutil.which(name)])"
    assert engine.docker(*python, found).strip() == "[]"


def test_what_the_image_says_of_itself(engine: Engine, stack: Stack) -> None:
    config = json.loads(engine.docker("image", "inspect", stack.image))[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tilecov"]
    assert config["Healthcheck"]["Test"] == ["CMD", "health.py"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["title"] == "tilecov"
    assert (labels["version"], labels["revision"], labels["created"]) == (version("tilecov"), "unknown", "")


def test_the_image_needs_no_rights(engine: Engine, stack: Stack) -> None:
    bare = ("run", "--rm", "--read-only", "--user", USER, "--cap-drop", "ALL", "--network", "none", "--tmpfs", "/tmp")
    said = engine.docker(*bare, stack.image, "synth", "/tmp/a.tar", "--count", "3", "--resolution", "8")
    assert "3 images" in said
    compilers = engine.docker(*bare, "--entrypoint", "sh", stack.image, "-c", "command -v gcc cc ld strip || true")
    assert compilers == ""


def test_the_codecs_that_tilecov_uses_are_left(engine: Engine, stack: Stack) -> None:
    """docker/trim.sh takes out a hundred others."""
    names = ("spng_decode", "deflate_crc32", "jpeg8_decode", "webp_decode")
    code = "import imagecodecs; [getattr(imagecodecs, name) for name in %r]; print(imagecodecs._deflate.__name__)"
    said = engine.docker("run", "--rm", "--entrypoint", "python3", stack.image, "-c", code % (names,))
    assert said == "imagecodecs._deflate"


def test_the_first_process_ends_when_it_is_told_to(engine: Engine, stack: Stack) -> None:
    many = ("synth", "/tmp/a.tar", "--count", "1000000", "--resolution", "8", "--workers", "1")
    container = engine.docker("run", "--detach", "--tmpfs", "/tmp", stack.image, *many)
    try:
        until(lambda: "a.tar" in engine.docker("exec", container, "ls", "-A", "/tmp"))
        engine.docker("stop", "--time", "60", container)
        assert stack.inspect(container)["State"]["ExitCode"] == 130
    finally:
        engine.docker("rm", "--force", container)


def files_in_layers(engine: Engine, image: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file in each layer, and of what the image says of itself."""
    engine.docker("save", "--output", str(folder / "image.tar"), image)
    with tarfile.open(folder / "image.tar") as whole:
        layers = json.loads(whole.extractfile("manifest.json").read())[0]["Layers"]  # type: ignore[union-attr]
        for member in whole:
            content = whole.extractfile(member)
            if content is None:
                continue
            if member.name not in layers:
                yield member.name, content.read()
                continue
            with tarfile.open(fileobj=content) as layer:  # whatever it is packed with
                for file in layer:
                    inside = layer.extractfile(file) if file.isreg() else None
                    yield file.name, inside.read() if inside else b""


def test_no_secret_is_in_a_layer(engine: Engine, stack: Stack, tmp_path: Path) -> None:
    """The build's folder has secrets of a user beside it, and the services run with others."""
    for name, content in SECRETS.items():
        assert content in (stack.tree / "docker" / name).read_text()
    secrets = [SECRET.encode(), KEY.encode(), *(content.encode() for content in SECRETS.values())]
    names = set()
    for name, content in files_in_layers(engine, stack.image, tmp_path):
        names.add(name)
        assert [secret for secret in secrets if secret in content] == [], name
        assert Path(name).name not in {"credentials", "token", ".env"}, name
    assert {"opt/tilecov/bin/health.py", "opt/tilecov/bin/tilecov", "manifest.json"} < names
