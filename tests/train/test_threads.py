"""How many threads compute changes no bit of what is learned."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ARCHITECTURES, ModelConfig
from tests.tiny import prepare_text, words
from tests.train.runs import make_trainer
from train.loop import update
from train.presets import PRESETS
from train.setup.network import initial_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return prepare_text(words(5_000), tmp_path_factory.mktemp("data"))


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave torch with the threads it had."""
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("more", "dtype"),
    [({}, torch.float32), ({}, torch.bfloat16), (ARCHITECTURES["modern"], torch.float32)],
)
def test_what_a_network_learns_does_not_depend_on_the_threads(
    more: dict[str, Any], dtype: torch.dtype, data: DataFolder, cpu: Device
) -> None:
    preset, tokenizer = PRESETS["tiny"], data.tokenizer()
    learned = []
    for numbers in ([1, 1, 1], [2, 1, 2]):
        settings = preset.model_for(tokenizer.kind, data.n_tokens("train")) | more
        shape = ModelConfig(**settings, vocab_size=tokenizer.vocab_size)
        config = preset.train_config({})
        model = initial_model(shape, config, None, data.tokens("train"))
        model.train()
        trainer = make_trainer(model, data, config, replace(cpu, dtype=dtype), batch_size=8)
        for step, n_threads in enumerate(numbers):
            torch.set_num_threads(n_threads)
            update(trainer, step, 1e-3)
        learned.append([weights.detach().clone() for weights in model.parameters()])
    for weights in zip(*learned, strict=True):
        assert all(torch.equal(each, weights[0]) for each in weights)
