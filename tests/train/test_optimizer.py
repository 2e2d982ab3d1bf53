"""An update against the same written in plain torch, and the optimizer's state on disk."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common.config import ModelConfig
from common.device import Device
from common.errors import CheckpointError, UserError
from common.model import GPT
from common.tokenfile import DataFolder
from train.batches import window_starts
from train.config import TrainConfig
from train.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from train.step import train_step

CONFIG = TrainConfig(
    tokens_per_step=128, batch_size=8, weight_decay=0.3, beta1=0.8, beta2=0.9, grad_clip=0.5
)


def fresh_model(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config)


def ten_steps(
    model: GPT, data: DataFolder, config: TrainConfig, cpu: Device
) -> tuple[list[float], list[float]]:
    """Return the losses of ten steps, and the norms of their gradients."""
    optimizer = make_optimizer(model, config)
    steps = [
        train_step(model, optimizer, data, config, cpu, step=step, lr=1e-2) for step in range(10)
    ]
    return [loss for loss, _ in steps], [norm for _, norm in steps]


@pytest.mark.parametrize("bias", [True, False])
def test_only_what_has_two_dimensions_decays(tiny_config: ModelConfig, bias: bool) -> None:
    model = fresh_model(replace(tiny_config, bias=bias, norm="layernorm", tied_head=False))
    optimizer = make_optimizer(model, CONFIG)
    decay_of = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_vector = "ln_" in name or "_norm" in name or name.endswith("bias")
        assert decay_of[id(parameter)] == (0.0 if is_vector else 0.3), name


def test_a_step_equals_one_written_in_plain_torch(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    ours, plain = fresh_model(tiny_config), fresh_model(tiny_config)
    optimizer = make_optimizer(ours, CONFIG)
    matrices = [p for p in plain.parameters() if p.dim() >= 2]
    vectors = [p for p in plain.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.8, 0.9),
        fused=False,
        foreach=False,
    )
    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    for step, lr in enumerate([1e-2, 5e-3, 2e-3]):
        loss, norm = train_step(ours, optimizer, data, CONFIG, cpu, step=step, lr=lr)
        starts = window_starts(CONFIG.seed, step, 8, len(ids), 16)
        x = torch.stack([ids[s : s + 16] for s in starts])
        y = torch.stack([ids[s + 1 : s + 17] for s in starts])
        logits, _ = plain(x)
        expected = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        expected_norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        for g in gradients:
            g.mul_(min(1.0, 0.5 / expected_norm))
        adamw.step()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
        assert norm > 0.5  # clipping is at work
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            # where a gradient is near 0, its sign, and so AdamW's step, hangs on rounding
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_clipping_the_gradient_is_as_it_is(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = fresh_model(tiny_config)
    config = replace(CONFIG, grad_clip=0.0)
    _, norm = train_step(model, make_optimizer(model, config), data, config, cpu, step=0, lr=0.0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_losses_do_not_depend_on_the_rows_at_a_time(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, batch_size: int
) -> None:
    losses, norms = ten_steps(fresh_model(tiny_config), data, CONFIG, cpu)
    config = replace(CONFIG, batch_size=batch_size)
    losses_in_parts, norms_in_parts = ten_steps(fresh_model(tiny_config), data, config, cpu)
    assert losses_in_parts == pytest.approx(losses, rel=1e-4)
    assert norms_in_parts == pytest.approx(norms, rel=1e-3)
    assert losses[-1] < losses[0] - 0.3  # it learned


def test_dropout_of_a_step_depends_on_the_seed_and_the_step_alone(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = fresh_model(replace(tiny_config, dropout=0.5))

    def loss(step: int, seed: int = 1337) -> float:
        torch.rand(3)  # someone else draws
        config = replace(CONFIG, seed=seed)
        optimizer = make_optimizer(model, config)
        return train_step(model, optimizer, data, config, cpu, step=step, lr=0.0)[0]

    assert loss(step=3) == loss(step=3)
    assert len({loss(step=3), loss(step=4), loss(step=3, seed=1)}) == 3


def test_the_state_comes_back_and_goes_on_the_same(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, tmp_path: Path
) -> None:
    model = fresh_model(tiny_config)
    optimizer = make_optimizer(model, CONFIG)
    for step in range(3):
        train_step(model, optimizer, data, CONFIG, cpu, step=step, lr=1e-2)
    tensors = optimizer_tensors(optimizer, model)
    assert len(tensors) == 3 * len(list(model.parameters()))  # exp_avg, exp_avg_sq, step
    save_file(tensors, tmp_path / "optimizer.safetensors")

    copy = GPT(tiny_config)
    copy.load_state_dict(model.state_dict())
    restored = make_optimizer(copy, CONFIG)
    load_optimizer_tensors(restored, copy, load_file(tmp_path / "optimizer.safetensors"))
    for step in range(3, 6):
        for each, its_optimizer in ((model, optimizer), (copy, restored)):
            train_step(each, its_optimizer, data, CONFIG, cpu, step=step, lr=1e-2)
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_model_is_refused(tiny_config: ModelConfig) -> None:
    model = fresh_model(tiny_config)
    tensors = {"h.7.ln_1.weight:exp_avg": torch.zeros(16)}
    with pytest.raises(CheckpointError, match=r"h\.7\.ln_1\.weight:exp_avg, which this model"):
        load_optimizer_tensors(make_optimizer(model, CONFIG), model, tensors)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_weights_stay_as_they_are_when_the_loss_is_not_finite(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, damage: float
) -> None:
    model = fresh_model(tiny_config)
    with torch.no_grad():
        dict(model.named_parameters())["ln_f.weight"][0] = damage
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments: dict[str, Any] = {"step": 4, "lr": 1e-2}
    with pytest.raises(UserError, match=r"step 4: the loss is .* has diverged"):
        train_step(model, make_optimizer(model, CONFIG), data, CONFIG, cpu, **arguments)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or "ln_f" in name
