"""Print what pyproject.toml asks for, with the extras named: packages are then a layer that code does not change."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [name for name in sys.argv[1].split(",") if name]
groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]
sys.stdout.writelines(f"{requirement}\n" for group in groups for requirement in group)
