"""The bench for GPUs, small and on the CPU: where no GPU is, nothing else would run it."""

import re
from pathlib import Path

import pytest

from tests.bench import gpu
from tests.tiny import words

SMALL = gpu.Sizes(
    shape={"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 256, "vocab_size": 300},
    n_rows=4,
    n_together=2,
    n_steps=4,
    side=64,
    n_copied=1 << 16,
    repeats=1,
    compile=False,
    recipe=("--preset", "tiny", "--tokens-per-step", "512", "--max-steps", "1"),
)


def test_every_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(words(4_000), encoding="utf-8")
    gpu.main(SMALL, "cpu", text)
    out = capsys.readouterr().out
    for name in ("ours", "GPT2LMHeadModel, compiled, SDPA", "transformers generate"):
        [*_, figure] = re.findall(rf"^{name} +([\d,.]+) ", out, re.MULTILINE)
        assert float(figure.replace(",", "")) > 0
    shares = re.findall(r"^Share of .*: ([\d.]+)%$", out, re.MULTILINE)
    assert len(shares) == 2
    assert all(float(share) > 0 for share in shares)
    assert re.search(r"^seed 1: not reached after .* best val \d\.\d{4} ", out, re.MULTILINE)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out == "No GPU here: nothing is measured.\n"
