"""An export that is killed leaves nothing under the final name; and it takes little memory."""

import signal
import time
from pathlib import Path

import pytest

from common.checkpoint import MODEL_NAME, save_checkpoint
from common.files import write_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from tests.processes import run_python, start_python
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()
MB = 1_000_000


def large_run(folder: Path, n_embd: int) -> int:
    """Save a run with an embedding of many rows of padding; return the bytes of its weights."""
    shape = ARCHITECTURES["gpt2"] | {"n_layer": 8, "n_head": 4, "n_embd": n_embd, "block_size": 64}
    run = new_run(folder / "runs", "large")
    write_json(run / "config.json", {"format": 1})
    model = GPT(ModelConfig(vocab_size=BYTES.vocab_size, **shape))
    progress = {"progress": {"step": 1, "n_tokens": 5}}
    saved = save_checkpoint(run, 1, model, {}, progress, BYTES)
    return (saved / MODEL_NAME).stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "name", "unfinished_name"),
    [
        ("hf", "out", ".out.unfinished"),
        ("onnx", "out", ".out.unfinished"),
        ("gguf", "out.gguf", "out.gguf.tmp"),
    ],
)
def test_a_killed_export_leaves_nothing_under_its_name(
    to: str, name: str, unfinished_name: str, tmp_path: Path
) -> None:
    large_run(tmp_path, 256)
    out = tmp_path / name
    command = ["-m", "sample", "export", "large", out.name, "--to", to]
    unfinished = out.with_name(unfinished_name)
    persons = out.with_name("out.tmp")  # past bug: it was deleted
    persons.mkdir()
    with start_python(command, tmp_path) as process:
        while not unfinished.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "out.tmp", unfinished_name}
    ended = run_python(command, tmp_path)  # what it left is no hindrance
    assert persons.is_dir()
    assert ended.returncode == 0, ended.stderr
    assert out.exists()
    assert not unfinished.exists()


MEASURED = """import importlib, pathlib, sys
try:
    importlib.import_module(sys.argv.pop(1) + ".cli").main()
finally:
    print(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak_bytes(command: list[str], folder: Path) -> int:
    """Return the most memory of a command; by VmHWM, as ru_maxrss begins at the parent's peak."""
    ended = run_python(["-c", MEASURED, *command], folder)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_below_1_2_of_the_model_and_300_mb(dtype: str, tmp_path: Path) -> None:
    most = 1.2 * large_run(tmp_path, 1_024) + 300 * MB
    export = ["sample", "export", "large", "--dtype", dtype]
    assert peak_bytes([*export, "out", "--to", "hf"], tmp_path) < most
    assert peak_bytes([*export, "out.safetensors", "--to", "weights"], tmp_path) < most
    numbers = {"float32": "q4_0"}.get(dtype, dtype)
    gguf = ["sample", "export", "large", "out.gguf", "--to", "gguf", "--dtype", numbers]
    assert peak_bytes(gguf, tmp_path) < most
    assert peak_bytes(["train", "import", "out", "--run", "back"], tmp_path) < most
