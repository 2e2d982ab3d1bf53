"""Adapters against plain torch; a run that learns them, its checkpoints, and stops of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint import load_checkpoint, newest_valid
from common.dataset import DataFolder
from common.device import Device
from common.errors import ConfigError
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import read_pointer
from tests.tiny import random_model
from tests.train.runs import assert_same_outcome, pretrain
from tests.train.stops import StopAfter
from train.batches.sources import make_source
from train.config import TrainConfig
from train.loop import update
from train.monitoring.metrics import Update
from train.optim.lora import LoRALinear, add_lora, lora_layers, unmerged, without_lora
from train.optim.optimizers import make_optimizer
from train.pretrain import resume_run
from train.signals import StopRequest
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_plan")
IDS = torch.tensor([[1, 5, 2, 8, 3, 9, 4, 7]])


def with_adapters(config: ModelConfig, rank: int = 3) -> GPT:
    """Return a network in float64 whose adapters are not at their beginning."""
    model = random_model(config).double()
    add_lora(model, rank, alpha=6.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in unmerged(model).items():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_is_applied(tiny_config: ModelConfig, architecture: str) -> None:
    config = replace(tiny_config, **ARCHITECTURES[architecture])
    model = with_adapters(config)
    assert len(lora_layers(model)) == (5 if config.mlp == "swiglu" else 4)
    merged = GPT(config).double().eval()
    merged.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IDS), merged(IDS), rtol=1e-12, atol=1e-12)
    base = random_model(config).double()(IDS)
    assert not torch.allclose(merged(IDS), base, atol=0.1)
    with without_lora(model):
        assert torch.equal(model(IDS), base)
    assert not torch.equal(model(IDS), base)


def test_an_adapter_is_the_formula_of_the_paper() -> None:
    linear = torch.nn.Linear(5, 4).double()
    layer = LoRALinear(linear, 2, 6.0, torch.Generator().manual_seed(0))
    x, b = torch.randn(3, 5).double(), torch.randn(4, 2).double()
    assert torch.equal(layer(x), linear(x))  # B is zero
    layer.lora_B.data.copy_(b)
    expected = x @ (linear.weight + 6.0 / 2 * b @ layer.lora_A).T + linear.bias
    torch.testing.assert_close(layer(x), expected)


def test_adapters_begin_as_the_network_itself_and_they_alone_learn(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    config = TrainConfig(tokens_per_step=64, batch_size=4, lora=2, learning_rate=1e-2)
    model, base = random_model(tiny_config), random_model(tiny_config)
    add_lora(model, config.lora, config.lora_alpha, config.seed)
    assert torch.equal(model(IDS), base(IDS))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    source = make_source(data, config, tiny_config.block_size)
    trainer = Trainer(model, make_optimizer(model, config), source, config, cpu, batch_size=4)
    for step in range(2):  # the first gives A no gradient: B is zero
        update(trainer, step, 1e-2)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if "lora_" in name}
    with without_lora(model):
        assert torch.equal(model(IDS), base(IDS))
    # two moments of adapters only, where all weights would have them
    moments = {n: t for n, t in trainer.optimizer.state_dict().items() if n.endswith("exp_avg")}
    assert {name.rpartition(":")[0] for name in moments} == changed


@pytest.fixture(scope="module")
def base(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a network that was trained for some steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        run = pretrain(data.path, tmp_path_factory.mktemp("base"), "base", ngrams=2)
        return newest_valid(run, "best")


LORA: dict[str, Any] = {"lora": 2, "optimizer": "adamw", "batch_size": 2}


def finetune(data: DataFolder, base: Path, folder: Path, name: str, **changed: Any) -> Path:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "ngram_rows": 64}
    return pretrain(data.path, folder, name, init_from=base, **LORA | shape | changed)


@pytest.fixture(scope="module")
def unstopped(data: DataFolder, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        return finetune(data, base, tmp_path_factory.mktemp("unstopped"), "tiny")


def test_its_checkpoint_is_a_network_like_any_other(base: Path, unstopped: Path) -> None:
    latest = read_pointer(unstopped, "latest")
    assert latest is not None
    before, after = (load_file(folder / "model.safetensors") for folder in (base, latest))
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"h.0.{layer}.weight" for layer in layers}
    state = load_file(latest / "optimizer.safetensors")
    for name in changed:
        adapter = name.removesuffix("weight")
        assert torch.equal(state[f"{name}:value"], before[name])
        a, b = (state[f"{adapter}lora_{which}:value"] for which in "AB")
        torch.testing.assert_close(after[name], before[name] + 16.0 * b @ a)
    assert load_checkpoint(latest, torch.device("cpu")).model(IDS).isfinite().all()


@pytest.mark.parametrize("n_times", [5, 9])
def test_stopped_and_resumed_it_has_the_same_bits(
    data: DataFolder, base: Path, tmp_path: Path, unstopped: Path, n_times: int
) -> None:
    run = finetune(data, base, tmp_path, "tiny", stop=StopAfter(n_times))
    assert resume_run(run, "cpu", StopRequest()) is None
    assert_same_outcome(run, unstopped)


@pytest.mark.parametrize(("spoilt_at", "from_step"), [(7, 6), (2, 0)])
def test_a_return_puts_adapters_back_too(
    data: DataFolder,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoilt_at: int,
    from_step: int,
) -> None:
    def spoilt(trainer: Trainer, step: int, lr: float) -> Update:
        adapter = trainer.model.get_parameter("h.0.mlp.c_fc.lora_A")
        if step == spoilt_at and not returned:
            returned.append(adapter)
            adapter.data.fill_(float("nan"))
        # half the rate is what a return makes it; the second run is to have it from there on
        return update(trainer, step, lr)

    def halved(trainer: Trainer, step: int, lr: float) -> Update:
        return update(trainer, step, lr * (0.5 if step >= from_step else 1.0))

    returned: list[Tensor] = []
    often: dict[str, Any] = {"save_interval": 4, "max_bad_steps": 2}
    monkeypatch.setattr("train.loop.update", spoilt)
    run = finetune(data, base, tmp_path, "spoilt", **often)
    monkeypatch.setattr("train.loop.update", halved)
    expected = finetune(data, base, tmp_path, "expected", **often)
    for name in ("model", "optimizer"):
        folders = (read_pointer(run, "latest"), read_pointer(expected, "latest"))
        found, wanted = (load_file(Path(f, f"{name}.safetensors")) for f in folders if f)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("other", [{"optimizer": "muon"}, {"shard": True}])
def test_what_does_not_go_with_it_is_said(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--lora 4: --"):
        TrainConfig(lora=4, **other)
