"""An export that is killed leaves nothing under the final name; and it takes little memory."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import MODEL_NAME, save_checkpoint
from common.files import write_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, special_ids_after
from tests.processes import run_python, start_python

MB = 1_000_000
OUT = {"hf": "out", "weights": "out.safetensors", "gguf": "out.gguf", "onnx": "out"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Save a run of GPT-2's 124 M numbers and 50,000 tokens; return the folder it is in."""
    shape = ARCHITECTURES["gpt2"] | {"n_layer": 12, "n_head": 12, "n_embd": 768}
    folder = tmp_path_factory.mktemp("large")
    make_pairs_run(folder, 49_996, block_size=1_024, **shape)
    yield folder
    shutil.rmtree(folder)


def make_pairs_run(folder: Path, n_pairs: int, **shape: Any) -> None:
    """Save a run of so many tokens of two bytes."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes([i >> 8, i & 0xFF]) for i in range(n_pairs)]
    ranks = {token: i for i, token in enumerate(tokens)}
    tokenizer = BytePairTokenizer("pairs", GPT2_PATTERN, ranks, special_ids_after(len(ranks)))
    run = new_run(folder / "runs", "large")
    write_json(run / "config.json", {"format": 1})
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape))
    save_checkpoint(run, 1, model, {}, {"progress": {"step": 1, "n_tokens": 5}}, tokenizer)


def written(folder: Path) -> dict[str, int]:
    """Return the bytes of everything that exports made there."""
    made = [path for path in folder.iterdir() if path.name not in ("runs", "out.unfinished")]
    return {path.name: sum(map(n_bytes, [path, *path.rglob("*")])) for path in made}


def n_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has just got another name
        return 0


def delete(folder: Path) -> None:
    for name in written(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("to", OUT)
def test_a_killed_export_leaves_nothing_under_its_name(to: str, gpt2: Path) -> None:
    delete(gpt2)
    command = ["-m", "sample", "export", "large", OUT[to], "--to", to]
    persons = gpt2 / "out.unfinished"  # past bug: it was deleted
    persons.mkdir(exist_ok=True)
    for most in (1, 150 * MB, 300 * MB):  # of 498
        delete(gpt2)
        with start_python(command, gpt2) as process:
            while sum(written(gpt2).values()) < most and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert written(gpt2)
        assert not written(gpt2).keys() & {OUT[to], "out.Modelfile"}
    ended = run_python(command, gpt2)  # what it left is no hindrance
    assert ended.returncode == 0, ended.stderr
    assert written(gpt2).keys() == {OUT[to]} | ({"out.Modelfile"} if to == "gguf" else set())
    assert persons.is_dir()


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
@pytest.mark.parametrize(
    ("to", "dtype"),
    [
        ("hf", "float32"), ("hf", "bfloat16"), ("weights", "float32"), ("weights", "float16"),
        ("gguf", "float32"), ("gguf", "q4_0"), ("onnx", "float32"),
    ],
)  # fmt: skip
def test_peak_memory_is_little_more_than_the_model(to: str, dtype: str, gpt2: Path) -> None:
    delete(gpt2)
    [weights] = gpt2.glob(f"runs/large/*/{MODEL_NAME}")
    most = 1.2 * weights.stat().st_size + 300 * MB
    export = ["sample", "export", "large", OUT[to], "--to", to, "--dtype", dtype]
    assert peak_bytes(export, gpt2) < most
    if to == "hf":
        assert peak_bytes(["train", "import", OUT[to], "--run", "back"], gpt2) < most
        shutil.rmtree(gpt2 / "runs" / "back")


@pytest.mark.slow
@pytest.mark.parametrize("to", OUT)
@pytest.mark.parametrize(
    ("n_pairs", "shape"),
    [
        (7_936, {"n_layer": 2, "n_head": 2, "n_embd": 128}),
        # past bugs: a vocabulary and imports of other formats, 345 MB of 332 with 50,000 tokens;
        (29_744, {"n_layer": 2, "n_head": 2, "n_embd": 128}),
        # each tensor of a GGUF file kept a map of its own, and the trace of ONNX each weight
        (1_800, ARCHITECTURES["modern"] | {"n_layer": 48, "n_head": 2, "n_embd": 128}),
    ],
    ids=["small", "vocabulary", "deep"],
)
def test_peak_memory_is_below_the_limit_of_small_networks_too(
    to: str, n_pairs: int, shape: dict[str, Any], tmp_path: Path
) -> None:
    make_pairs_run(tmp_path, n_pairs, **shape)
    [weights] = tmp_path.glob(f"runs/large/*/{MODEL_NAME}")
    most = 1.2 * weights.stat().st_size + 300 * MB
    assert peak_bytes(["sample", "export", "large", OUT[to], "--to", to], tmp_path) < most
    if to == "hf" and n_pairs != 29_744:  # to import, that takes as much as the limit
        assert peak_bytes(["train", "import", OUT[to], "--run", "back"], tmp_path) < most
