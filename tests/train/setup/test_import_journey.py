"""What was imported goes the whole way; by way of the hub, in little memory, killed or not."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.checkpoint import load_checkpoint, newest_valid
from common.huggingface.json_tokenizer import JsonTokenizer
from common.models.config import ModelConfig
from sample.export.run import export_run
from tests.common.huggingface.test_json_tokenizer import as_tinyllama, auto_tokenizer
from tests.processes import run_python, start_python
from tests.sample.chats import BYTES
from tests.sample.export.test_hf import make_run
from tests.sample.export.test_killed import MB, peak_bytes
from tests.tiny import random_model, words
from tests.train.setup import test_import_file as files
from tests.train.setup.test_import_folder import save_by_transformers

CPU = torch.device("cpu")
SHORT = ["--max-steps", "4", "--device", "cpu", "--eval-interval", "2"]


def run(folder: Path, *command: str, code: int = 0) -> str:
    ended = run_python(["-m", *command], folder)
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def assert_exported_alike(folder: Path, name: str) -> None:
    """Hold what transformers loads of an export to the run that was exported."""
    run(folder, "sample", "export", name, f"{name}-out", "--to", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(folder / f"{name}-out").eval()
    ours = load_checkpoint(newest_valid(folder / "runs" / name, "best"), CPU).model.eval()
    idx = torch.randint(0, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(idx).logits, ours(idx), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "tinyllama"])
def test_an_imported_run_is_trained_further_and_exported_again(kind: str, tmp_path: Path) -> None:
    changed = {"vocab_size": 700, "head_dim": 24} if kind != "gpt2" else {}
    save_by_transformers(
        tmp_path / "theirs", "llama" if kind == "tinyllama" else kind,
        eos_token_id=2 if kind == "tinyllama" else 0, **changed,
    )  # fmt: skip
    if kind == "tinyllama":
        auto_tokenizer(as_tinyllama(), tmp_path / "vocabulary")
        shutil.copy(tmp_path / "vocabulary" / "tokenizer.json", tmp_path / "theirs")
    (tmp_path / "text.txt").write_text(words(3000), "utf-8")
    said = run(tmp_path, "train", "import", "theirs", "--run", "base")
    assert "python -m sample chat base" in said
    said = run(tmp_path, "train", "resume", "base", code=1)
    assert "was imported" in said
    assert "resume base --data DATA" in said
    run(tmp_path, "prepare", "text", "text.txt", "--tokenizer", "runs/base", "--out", "data")
    run(tmp_path, "prepare", "verify", "data")
    run(tmp_path, "train", "pretrain", "--init-from", "base", "--run", "more", *SHORT)
    assert_exported_alike(tmp_path, "more")
    resume = ["train", "resume", "base", "--device", "cpu", "--max-steps"]
    run(tmp_path, *resume, "3", "--data", "data")
    assert "base/step-00000005" in run(tmp_path, *resume, "5")
    assert_exported_alike(tmp_path, "base")
    assert "base" in run(tmp_path, "train", "compare")
    assert run(tmp_path, "sample", "generate", "base", "--prompt", "the", "--max-new-tokens", "5")
    tokenizer = load_checkpoint(newest_valid(tmp_path / "runs" / "base", "best"), CPU).tokenizer
    assert isinstance(tokenizer, JsonTokenizer) == (kind == "tinyllama")


@pytest.mark.slow
def test_an_imported_run_learns_to_answer(tmp_path: Path) -> None:
    save_by_transformers(tmp_path / "theirs", "gpt2")
    talk = [{"role": "user", "content": "stone"}, {"role": "assistant", "content": "a quern"}]
    lines = [json.dumps({"messages": [{**talk[0], "content": str(i)}, talk[1]]}) for i in range(99)]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), "utf-8")
    run(tmp_path, "train", "import", "theirs", "--run", "base")
    run(tmp_path, "prepare", "chats", "talk.jsonl", "--tokenizer", "runs/base", "--out", "talk")
    run(tmp_path, "train", "finetune", "--from", "base", "--data", "talk", "--run", "tuned", *SHORT)
    assert_exported_alike(tmp_path, "tuned")
    card = (tmp_path / "tuned-out" / "README.md").read_text("utf-8")
    assert "train: " in card
    assert "undertrained" not in card


@pytest.mark.slow
def test_a_name_of_the_hub_is_the_folder_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, as HF_HUB_OFFLINE says; the cache is laid out as its library does."""
    config = ModelConfig(vocab_size=BYTES.vocab_size, n_layer=1, n_head=2, n_embd=8, block_size=16)
    make_run(tmp_path / "runs", random_model(config), BYTES)
    cached, commit = tmp_path / "hub" / "models--some.one--tiny-1", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit, "utf-8")
    (cached / "snapshots").mkdir()
    export_run("x", cached / "snapshots" / commit, "hf", "float32", tmp_path / "runs", "best")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(tmp_path, "train", "import", "some.one/tiny-1", "--run", "theirs")
    found = load_checkpoint(newest_valid(tmp_path / "runs" / "theirs", "best"), CPU)
    assert found.model.config == config
    said = run(tmp_path, "train", "import", "some.one/other", "--run", "other", code=1)
    assert said.startswith("Error: some.one/other: cannot be imported (LocalEntryNotFoundError")
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_import_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    save_by_transformers(tmp_path / "theirs", "gpt2", n_embd=512, n_layer=8)
    command = ["-m", "train", "import", "theirs", "--run", "x"]
    unfinished = tmp_path / "runs" / ".x.unfinished"
    with start_python(command, tmp_path) as process:
        while not list(unfinished.glob("*/*")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "x: no such run" in run(tmp_path, "sample", "generate", "x", "--prompt", "a", code=1)
    assert not (tmp_path / "runs" / "x").exists()
    run(tmp_path, *command[1:])  # what it left is no hindrance
    assert sorted(each.name for each in (tmp_path / "runs").iterdir()) == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["ckpt.pt", "gpt2.bin"])
def test_peak_memory_is_below_1_2_of_the_model_and_300_mb(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    sizes = {"n_layer": 16, "n_head": 8, "n_embd": 1024, "block_size": 64}
    monkeypatch.setattr(files, "SIZES", sizes)
    if source == "ckpt.pt":
        model = files.save_nanogpt(tmp_path / source, 50_304, bias=True)
        n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    else:
        files.write_llmc(tmp_path / source, 5)
        n_bytes = 2 * (tmp_path / source).stat().st_size
    most = 1.2 * n_bytes + 300 * MB
    assert peak_bytes(["train", "import", source, "--run", "x"], tmp_path) < most
