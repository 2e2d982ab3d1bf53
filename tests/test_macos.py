"""The same bytes where Python has what macOS has: no affinity, no fadvise, no /proc, no fork.

tests/macos/sitecustomize.py takes away what Linux alone has, for each process started here and the
workers that it spawns: 256 files open at once, and a flush that only F_FULLFSYNC makes last.
"""

import gzip
import json
import lzma
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import REPOSITORY, TIMEOUT_S, environment, run_python
from tests.sample.serving import make_mixed_run, serving
from tests.tiny import words
from tests.train.runs import options

MACOS = f"{Path(__file__).parent / 'macos'}{os.pathsep}{REPOSITORY}"
COMMANDS = {
    "text": "prepare text ../story.txt.xz ../lines --vocab-size 300 --workers 2",
    "index": "prepare index data",
    "pretrain": " ".join(["train pretrain", *options()]),
    "generate": "sample generate --prompt Once --seed 7 --max-new-tokens 40",
    "score": "sample score ../story.txt --json",
    "chat": "sample chat --seed 3 --transcript talk.jsonl",
    "weights": "sample export quern weights.safetensors --to weights",
    "folder": "sample export quern folder --to hf",
    "onnx": "sample export quern onnx --to onnx",
    "import": "train import folder --run again",
    "gpt2": " ".join(["train pretrain --run gpt2", *options(architecture="gpt2", n_embd=32)]),
    "gguf": "sample export gpt2 gpt2.gguf --to gguf --dtype q8_0",
}
# What names a run, says when it was made or at which speed, or the hash of such a file.
OF_THIS_RUN = {"config.json", "metrics.jsonl", "state.json", "manifest.json", "README.md"}
OF_THIS_RUN.add("weights.safetensors")


def run(command: str, folder: Path, *, macos: bool, typed: str) -> str:
    path = {"PYTHONPATH": MACOS} if macos else {}
    ended = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, env=environment() | path,
        input=typed.encode(), capture_output=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, (command, ended.stderr.decode())
    return ended.stdout.decode("utf-8", "backslashreplace")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in OF_THIS_RUN
    }


@pytest.mark.slow
def test_the_commands_write_the_same_bytes_as_on_linux(tmp_path: Path) -> None:
    story = words(30_000)
    (tmp_path / "story.txt").write_text(story, encoding="utf-8")
    (tmp_path / "story.txt.xz").write_bytes(lzma.compress(story.encode()))
    (tmp_path / "lines").mkdir()
    for name in ("a", "b"):
        lines = "".join(json.dumps({"text": words(30, seed=i)}) + "\n" for i in range(500))
        (tmp_path / "lines" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    said: dict[str, dict[str, str]] = {}
    for system in ("linux", "macos"):
        folder = tmp_path / system
        folder.mkdir()
        said[system] = {
            name: run(command, folder, macos=system == "macos", typed="one\ntwo\n" * 2)
            for name, command in COMMANDS.items()
        }
    assert said["macos"] == said["linux"]
    found = files(tmp_path / "macos")
    assert found == files(tmp_path / "linux")
    weights = [load_file(tmp_path / each / "weights.safetensors") for each in said]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {"data/train.bin", "data/train.sa", "talk.jsonl", "folder/model.safetensors"} <= set(
        found
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.sched_getaffinity(0)", "AttributeError: module 'os' has no attribute"),
        ("open('/proc/self/status', encoding='utf-8')", "FileNotFoundError: "),
        ("import os; os.fork()", "RuntimeError: macOS's libraries"),
        ("import os; os.fsync(1)", "RuntimeError: on macOS os.fsync()"),
        ("from prepare.readers.prefetch import can_fork; assert can_fork()", "AssertionError"),
    ],
)
def test_what_linux_alone_has_is_taken_away(
    code: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.processes.REPOSITORY", MACOS)
    assert run_python(["-c", code], tmp_path).stderr.splitlines()[-1].startswith(error)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.13"])
@pytest.mark.parametrize("machine", ["macosx_14_0_arm64", "manylinux_2_28_aarch64"])
def test_the_index_has_a_wheel_of_every_package_for(
    machine: str, version: str, tmp_path: Path
) -> None:
    older = [f"manylinux_2_{n}_aarch64" for n in range(17, 28)] if "linux" in machine else []
    platforms = [option for tag in [machine, *older] for option in ("--platform", tag)]
    ended = run_python(
        ["-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--target", "x",
         "--only-binary=:all:", "--implementation=cp", f"--python-version={version}", *platforms,
         f"--requirement={REPOSITORY / 'requirements.txt'}"],
        tmp_path,
    )  # fmt: skip
    if "Retrying" in ended.stderr:
        pytest.skip("the index of packages cannot be reached")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_more_connections_are_held_than_macos_lets_a_process_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mixed_run(tmp_path / "runs")
    monkeypatch.setattr("tests.processes.REPOSITORY", MACOS)
    with serving(tmp_path, "mixed") as server, ExitStack() as opened:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        for _ in range(300):
            opened.enter_context(socket.create_connection(address))
        assert httpx2.get(server.url + "/health").status_code == 200
        asked = {"model": "mixed", "prompt": "abc", "max_tokens": 4, "temperature": 0}
        answer = httpx2.post(server.url + "/v1/completions", json=asked)
        assert answer.json()["choices"][0]["finish_reason"] == "length", answer.text
