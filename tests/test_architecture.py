"""The two contracts of docs/architecture.md: who imports whom, and what runs without PyTorch."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}

# The packages of the extra `train`, by the names that they are imported by.
TRAIN_ONLY = (
    "PIL",
    "faster_coco_eval",
    "huggingface_hub",
    "jaxtyping",
    "jinja2",
    "lightning_fabric",
    "matplotlib",
    "numba",
    "scipy",
    "tensorboard",
    "torch",
)

# Run in a process of its own, where those packages are not to be had.
_IN_THE_LIGHT_CORE = """
import importlib, json, sys

given = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(given["blocked"]))
for module in given["modules"]:
    importlib.import_module(module)

from typer.main import get_command
from setdet.cli import app, main

def commands(command, path):
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, [*path, name])

asked = list(commands(get_command(app), []))
failed = [path for path in asked if main([*path, "--help"]) != 0]
assert not failed, failed
assert ["train"] in asked and ["data", "check"] in asked, asked
assert main(["models"]) == 0
"""


@pytest.mark.parametrize("contract", sorted(CONTRACTS))
def test_contract_is_kept(contract: str) -> None:
    # In a process of its own: it configures logging anew, and absl's handler takes pytest's standard error with it.
    code = "import sys; from importlinter import cli; sys.exit(cli.lint_imports_command())"
    given = ["--config", str(ROOT / "pyproject.toml"), "--contract", contract, "--no-cache", "--no-logo"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_core_and_help_run_without_the_train_extra() -> None:
    given = {"blocked": TRAIN_ONLY, "modules": ["setdet", *CONTRACTS["light"]["source_modules"]]}
    done = subprocess.run(
        [sys.executable, "-c", _IN_THE_LIGHT_CORE, json.dumps(given)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_setdet_stays_light() -> None:
    code = "import sys, setdet.cli; print(*sorted({'torch', 'scipy', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
