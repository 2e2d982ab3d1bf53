"""What the README claims to be there is there."""

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL_LINES = [
    line.split(" # ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
TREE = [
    (line.split()[0], line)
    for block in re.findall(r"```tree\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def tracked_files() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the project cannot be told")
    return set(listed.stdout.splitlines())


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = {
        word
        for line in SHELL_LINES
        for word in re.findall(r"\bmake ([a-z -]+)", line)[:1]
        for word in word.split()
    }
    assert used
    assert used <= targets


def test_every_command_of_the_readme_and_its_options_exist() -> None:
    commands = [line for line in SHELL_LINES if "python -m " in line]
    assert commands
    for line in commands:
        stage, verb, rest = re.search(  # type: ignore[union-attr]
            r"python -m (prepare|train|sample) ([a-z]+)(.*)", line
        ).groups()
        command = import_module(f"{stage}.cli").main.commands[verb]
        known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= known, line


def test_the_tree_names_every_folder_and_nothing_else() -> None:
    stages = ("common/", "prepare/", "train/", "sample/")
    files = [name for name in tracked_files() if name.startswith(stages)]
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    named: set[str] = set()
    path: list[str] = []
    for first, line in TREE:
        depth = (len(line) - len(line.lstrip())) // 4
        if first.endswith("/"):
            path[depth:] = [first.rstrip("/")]
            named.add("/".join(path))
        elif "." in first and depth:
            assert "/".join([*path[:depth], first]) in files
    assert named == folders | {"tests"}


def test_the_top_level_is_what_was_agreed() -> None:
    top = {name.split("/")[0] for name in tracked_files()}
    agreed = "common prepare train sample tests Makefile README.md requirements.txt"
    besides = "LICENSE pyproject.toml requirements-dev.txt requirements-ray.txt"
    besides += " requirements-llama.txt"
    assert {name for name in top if not name.startswith(".")} == set(
        (agreed + " " + besides).split()
    )
