"""What an earlier version wrote opens, goes on and speaks as it did; so does what is made anew.

tests/fixtures/ holds two data sets and three runs of 12 updates (runs-1, whose windows were drawn
with replacement), of the commit 5d9b690, the text that its runs generated, and the hashes of what
it made of the sources in sources.py; and the same runs with each token once an epoch (runs-2).
Training repeats itself bit for bit on one kind of processor; on others last bits differ, and losses
are compared to rounding.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.dataset import open_data, verify_data
from tests.fixtures.sources import PREPARED, write_sources
from tests.processes import run_each, run_python
from tests.train.runs import numbers

FIXTURES = Path(__file__).parent / "fixtures"
MADE_ON = "AuthenticAMD 26 2"  # vendor, family, model: other kernels of torch's libraries elsewhere
SHAPE = (
    "--n-layer 1 --n-head 2 --n-embd 8 --block-size 16 --dropout 0.1 --tokens-per-step 64 "
    "--batch-size 2 --warmup-steps 5 --eval-tokens 256 --max-steps 12 --eval-interval 6 "
    "--save-interval 6 --log-interval 1 --device cpu --dtype float32 --compile off "
    "--learning-rate 1e-2"
)
RUNS = {
    "tiny": "--data small-char --preset tiny --ngrams 5 --ngram-rows 32 --ngram-dim 0 "
    "--ngram-min-count 0 --tied-head --attn-dropout 0.1",
    "modern": "--data small-bpe --preset small --architecture modern --optimizer adamw "
    "--no-zero-init",
    "gpt2": "--data small-char --preset small --architecture gpt2 --no-zero-init",
}
GENERATE = {
    "greedy": "--temperature 0",
    "drawn": "--temperature 0.9 --top-p 0.9 --top-k 20 --min-p 0.01 "
    "--repetition-penalty 1.1 --seed 5",
}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    about = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    return " ".join(about.get(key, "") for key in ("vendor_id", "cpu family", "model"))


def run(commands: dict[str, str], folder: Path, *more: str) -> dict[str, str]:
    """Return what each command of train or sample wrote to stdout, by its name."""
    ended = run_each({name: [*line.split(), *more] for name, line in commands.items()}, folder)
    for done in ended.values():
        assert done.returncode == 0, done.stderr
    return {name: done.stdout for name, done in ended.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the data sets and the runs."""
    for name in ("small-char", "small-bpe", "runs-1", "runs-2"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    return tmp_path


def assert_as_before(found: Path, kept: Path) -> None:
    """Hold that a run of 12 updates has the losses, weights and moments of the one kept."""
    is_exact = processor() == MADE_ON
    for line, before in zip(numbers(found), numbers(kept), strict=True):
        assert line.keys() == before.keys()
        for key, value in before.items():
            assert line[key] == (value if is_exact else pytest.approx(value, rel=1e-4)), key
    for file in ("model.safetensors", "optimizer.safetensors"):
        new, old = (load_file(run / "step-00000012" / file) for run in (found, kept))
        assert new.keys() == old.keys()
        for key in old:
            np.testing.assert_allclose(
                new[key], old[key], rtol=0 if is_exact else 1e-3, atol=0 if is_exact else 1e-4
            )
    assert (found / "best").read_bytes() == (kept / "best").read_bytes()


@pytest.mark.parametrize("name", PREPARED)
def test_the_same_sources_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    write_sources(tmp_path / "sources")
    command = ["-m", "prepare", "text", "sources", "--out", "made", *PREPARED[name]]
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = json.loads((FIXTURES / "prepared.json").read_text(encoding="utf-8"))[name]
    written = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "made").iterdir()
        if path.name != "meta.json"
    }
    assert {name: sha256 for name, sha256 in written.items() if "names" not in name} == expected


@pytest.mark.parametrize("name", ["small-char", "small-bpe"])
def test_a_data_set_of_before_verifies(name: str) -> None:
    verify_data(open_data(FIXTURES / name))


def test_training_gives_the_losses_and_weights_of_before(folder: Path) -> None:
    begin = f"train pretrain --runs-dir anew {SHAPE}"
    run({name: f"{begin} --run {name} {options}" for name, options in RUNS.items()}, folder)
    for name in RUNS:
        assert_as_before(folder / "anew" / name, FIXTURES / "runs-2" / name)


@pytest.mark.parametrize("runs", ["runs-1", pytest.param("runs-2", marks=pytest.mark.slow)])
def test_runs_of_before_are_resumed_as_if_they_had_never_stopped(runs: str, folder: Path) -> None:
    commands = {}
    for name, options in RUNS.items():
        shutil.rmtree(folder / runs / name / "step-00000012")
        (folder / runs / name / "latest").write_text("step-00000006\n", encoding="utf-8")
        (folder / runs / name / "best").write_text("step-00000006\n", encoding="utf-8")
        data = options.split()[1]
        commands[name] = f"train resume {name} --runs-dir {runs} --device cpu --data {data}"
    run(commands, folder)
    for name in RUNS:
        assert_as_before(folder / runs / name, FIXTURES / runs / name)


def test_runs_of_before_say_what_they_said(folder: Path) -> None:
    commands = {
        f"{name} {how}": f"sample generate {name} --runs-dir runs-1 {options} --max-new-tokens 40"
        for name in RUNS
        for how, options in GENERATE.items()
    }
    texts = run(commands, folder, "--prompt", "the quern")
    assert texts == json.loads((FIXTURES / "texts.json").read_text(encoding="utf-8"))
