"""Compiling is never a condition: whatever fails in it is one warning, and the run goes on."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import read_metrics
from tests.processes import run_python
from tests.train.test_update import CONFIG, LR, bits, make
from train.loop import update
from train.trainer import Trainer


def compiled(
    data: DataFolder, shape: ModelConfig, device: Device, monkeypatch: pytest.MonkeyPatch, by: Any
) -> Trainer:
    """Return a Trainer that compiles by the function ``by`` in torch.compile's place."""
    monkeypatch.setattr(torch, "compile", by)
    trainer = make(data, shape, device, CONFIG)
    trainer.compile()
    return trainer


def fails_at_wrapping(*_: object, **__: object) -> Any:
    raise RuntimeError("Windows not yet supported for torch.compile\nmore of it")


def fails_at_the_first_call(*_: object, **__: object) -> Any:
    def call(*_: object) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

    return call


def fails_at_another_shape(model: GPT, **_: object) -> Any:
    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(x) < 8:
            raise TypeError("an error of the compiler's own")
        return model(x, y)  # type: ignore[no-any-return]

    return call


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (fails_at_wrapping, "(RuntimeError: Windows not yet supported for torch.compile)"),
        (fails_at_the_first_call, "(TorchDynamoException: no C++ compiler)"),
    ],
    ids=["at wrapping", "at the first call"],
)
def test_a_failure_is_one_warning_and_the_same_training(
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    by: Any,
    message: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        failing = compiled(data, tiny_config, cpu, monkeypatch, by)
        plain = make(data, tiny_config, cpu)
        for step in range(3):
            assert update(failing, step, LR) == update(plain, step, LR)
    assert bits(failing) == bits(plain)
    assert caplog.messages == [
        f"compiling failed {message}: going on without it. --compile off does not try."
    ]
    assert not failing.compiled


def test_a_failure_at_a_later_shape_redoes_the_step(
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = compiled(data, tiny_config, cpu, monkeypatch, fails_at_another_shape)
    plain = make(data, tiny_config, cpu)
    for step in range(3):
        if step == 1:
            failing.batch_size = plain.batch_size = 4
        assert update(failing, step, LR) == update(plain, step, LR)
        assert failing.compiled == (step == 0)
    assert len(caplog.messages) == 1


def test_an_error_of_the_network_itself_is_raised(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = compiled(data, tiny_config, cpu, monkeypatch, fails_at_the_first_call)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("in the network")

    monkeypatch.setattr(failing.model, "forward", broken)
    with pytest.raises(ZeroDivisionError, match="in the network"):
        update(failing, 0, LR)


@pytest.mark.filterwarnings("ignore")  # those of the compiler are its own affair
@pytest.mark.parametrize("ngrams", [1, 3])
def test_compiled_for_real_it_is_the_same_network_under_the_same_names(
    ngrams: int,
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_for_real, graphs = torch.compile, list[str]()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **_: object) -> Any:
        graphs.append(graph.code)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def by(model: GPT, **settings: Any) -> Any:
        return compile_for_real(model, backend=backend, **settings)

    shape = replace(tiny_config, ngrams=ngrams, ngram_rows=64)
    real = compiled(data, shape, cpu, monkeypatch, by)
    plain = make(data, shape, cpu)
    for step in range(2):
        ours, theirs = update(real, step, LR), update(plain, step, LR)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    assert real.compiled
    # of tables' sparse gradients Inductor makes an error
    assert any("embedding" in graph for graph in graphs) == (ngrams == 1)
    assert list(real.model.state_dict()) == list(plain.model.state_dict())
    assert not any("_orig_mod" in name for name in real.model.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_tiny_is_compiled_for_a_cpu(data: DataFolder, tmp_path: Path) -> None:
    options = ["--preset", "tiny", "--max-steps", "3", "--device", "cpu", "--dtype", "float32"]
    options += ["--pad-vocab", "2048"]  # past bug: with a head as large, its tables were too much
    options += ["--dropout", "0.3", "--ngram-dropout", "0.3", "--log-interval", "1"]
    command = ["-m", "train", "pretrain", "--data", str(data.path), *options]
    losses = []
    for compile_ in ("on", "off"):
        ended = run_python([*command, "--run", compile_, "--compile", compile_], tmp_path)
        assert ended.returncode == 0
        assert "compiling failed" not in ended.stderr
        records = read_metrics(tmp_path / "runs" / compile_)
        losses.append([each["loss"] for each in records if "loss" in each])
    assert len(losses[0]) == 3
    # what is dropped is drawn by the same generator, so the same is learned
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
