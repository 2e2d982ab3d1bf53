"""What runs Quern elsewhere, each held by its own linter: image, service, notebook."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import REPOSITORY

DEPLOY = REPOSITORY / "sample" / "deploy"
BIN = Path(sys.executable).parent  # of the environment: hadolint, and the notebook's python


def lint(*command: str | Path) -> str:
    """Return what a linter found, which is nothing where all is well."""
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return f"{ended.returncode or ''}{ended.stdout}{ended.stderr}"


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    assert lint(BIN / "hadolint", DEPLOY / "Dockerfile") == ""
    as_root = (DEPLOY / "Dockerfile").read_text("utf-8").replace("USER 1000:1000", "USER root")
    (tmp_path / "Dockerfile").write_text(as_root, encoding="utf-8")
    assert "DL3002" in lint(BIN / "hadolint", tmp_path / "Dockerfile")


def test_the_image_gets_what_the_commands_import_and_no_more() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = re.findall(r"^COPY (\S+) ", dockerfile, re.MULTILINE)
    assert copied == ["requirements.txt", "common", "prepare", "train", "sample"]
    assert ignored[1] == "*"
    assert [line[1:] for line in ignored if line.startswith("!")] == copied


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the package systemd")
def test_systemd_finds_nothing_in_the_service_and_little_exposed(tmp_path: Path) -> None:
    text = (DEPLOY / "quern.service").read_text("utf-8")
    unit = tmp_path / "quern.service"
    unit.write_text(text.replace("/opt/quern/.venv/bin/python", sys.executable), encoding="utf-8")
    assert lint("systemd-analyze", "verify", "--man=no", unit) == ""
    exposed = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(exposed, capture_output=True, check=False).returncode == 0  # of 2.0
    unit.write_text(text.replace("ProtectHome=read-only", "ProtectHome=readable"), encoding="utf-8")
    assert "protect home" in lint("systemd-analyze", "verify", "--man=no", unit)


@pytest.mark.parametrize("name", ["Dockerfile", "quern.service", "colab.ipynb"])
def test_every_command_in_it_and_its_options_exist(name: str) -> None:
    commands = re.findall(
        r"(?:-m|quern) (prepare|train|sample) ([a-z]+)([^\\\"\n]*)",
        (DEPLOY / name).read_text("utf-8"),
    )
    assert commands
    for stage, verb, rest in commands:
        command = import_module(f"{stage}.cli").main.commands[verb]
        known = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= known, (verb, rest)


@pytest.mark.slow
def test_the_notebook_trains_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(DEPLOY / "colab.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    clone, _, train, chat = [cell for cell in notebook.cells if cell.cell_type == "code"]
    clone.source = re.sub('REPOSITORY = ".*"', f'REPOSITORY = "file://{REPOSITORY}"', clone.source)
    train.source = train.source.replace("MINUTES = 3", "MINUTES = 0.1")
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # all is there
    monkeypatch.delenv("PYTHONPATH", raising=False)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert (tmp_path / "quern" / "runs" / "quern-chat" / "latest").is_file()
    answered = "".join(output.text for output in chat.outputs if output.get("name") == "stdout")
    assert len([line for line in answered.splitlines() if line.strip()]) >= 3, chat.outputs
