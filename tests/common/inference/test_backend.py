"""Which backend is taken, and what happens where Numba is missing."""

import sys

import pytest

from common.errors import ConfigError
from common.inference.backend import make_backend
from common.inference.cpu.backend import CpuBackend
from common.inference.torch_backend import TorchBackend
from common.models.config import ModelConfig
from tests.tiny import random_model

MODEL = random_model(ModelConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=8))
KERNELS = "common.inference.cpu"


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(KERNELS) or name.partition(".")[0] in ("numba", "llvmlite"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("numba", "llvmlite"):
        monkeypatch.setitem(sys.modules, name, None)


def test_cpus_have_the_compiled_backend() -> None:
    assert type(make_backend(MODEL)) is CpuBackend
    assert make_backend(MODEL, int8=True).weights.panels.itemsize == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("without_numba")
def test_without_numba_pytorchs_operators_generate_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert type(make_backend(MODEL)) is TorchBackend
    (record,) = caplog.records
    assert record.getMessage().startswith("Numba cannot be imported (")


@pytest.mark.usefixtures("without_numba")
def test_without_numba_int8_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="--quantize int8 needs Numba"):
        make_backend(MODEL, int8=True)
