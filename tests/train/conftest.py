"""One tiny data folder and the settings of one tiny run, for all tests of train."""

from pathlib import Path

import pytest

from common.dataset import DataFolder
from common.device import Device, choose_device
from common.models.config import ModelConfig
from tests.tiny import prepare_text, words


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Return about 4,500 characters to train on and 500 to validate on; not to be changed."""
    return prepare_text(words(1000), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_config(data: DataFolder) -> ModelConfig:
    return ModelConfig(
        vocab_size=data.tokenizer().vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16
    )


@pytest.fixture(scope="session")
def cpu() -> Device:
    return choose_device("cpu")


@pytest.fixture
def quick_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trial steps as few as can be: their speed is not what is tested."""
    monkeypatch.setattr("train.setup.autotune.MEASURE_S", 0.0)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in ``tmp_path``, where runs/ then is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
