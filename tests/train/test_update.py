"""An update against the same written in plain torch, and redone where something gave way."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.dataset import DataFolder
from common.device import Device
from common.errors import ConfigError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.batches.sources import make_source
from train.batches.windows import window_starts
from train.config import TrainConfig
from train.loop import update
from train.optim.gradients import GROWTH_INTERVAL, INITIAL_SCALE
from train.optim.lr_schedule import learning_rate_at
from train.optim.optimizers import make_optimizer
from train.trainer import Trainer

CONFIG = TrainConfig(
    tokens_per_step=128,
    batch_size=8,
    weight_decay=0.3,
    beta1=0.8,
    beta2=0.9,
    grad_clip=0.5,
    learning_rate=1e-2,
    schedule="constant",
    warmup_steps=0,
    max_steps=100,
)

LR = 1e-2
HALF = Device(torch.device("cpu"), torch.float16, "a test")


@pytest.fixture
def trainer(data: DataFolder, tiny_config: ModelConfig, cpu: Device) -> Trainer:
    return make(data, tiny_config, cpu)


def make(
    data: DataFolder, shape: ModelConfig, device: Device, config: TrainConfig = CONFIG
) -> Trainer:
    torch.manual_seed(0)
    model = GPT(shape)
    optimizer = make_optimizer(model, config)
    source = make_source(data, config, shape.block_size)
    return Trainer(model, optimizer, source, config, device, batch_size=config.batch_size)


def bits(trainer: Trainer) -> list[bytes]:
    """Return every bit of the weights and of the optimizer's state."""
    state = trainer.optimizer.state_dict()
    tensors = [*trainer.model.parameters(), *(state[name] for name in sorted(state))]
    return [t.detach().numpy().tobytes() for t in tensors]


def spoil(weights: Tensor) -> Any:
    """Make the gradient of these weights infinite, until the handle returned removes that."""
    return weights.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]


class Giving:
    """Puts a forward pass in place that fails as ``fail`` says: a device that has its limits."""

    def __init__(self, trainer: Trainer, fail: Any) -> None:
        self.model, self.fail, self.rows = trainer.model, fail, list[int]()
        trainer.eager = trainer.forward = self  # type: ignore[assignment]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.fail(self, x, self.model(x, y))  # type: ignore[no-any-return]


class FailsBackward(torch.autograd.Function):
    """Passes a loss on, and runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_step_equals_one_written_in_plain_torch(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, schedule: Any
) -> None:
    config = replace(CONFIG, schedule=schedule, max_steps=5, min_lr=0.0)
    trainer = make(data, tiny_config, cpu, config)
    torch.manual_seed(0)
    plain = GPT(tiny_config)
    matrices = [p for p in plain.parameters() if p.dim() >= 2]
    vectors = [p for p in plain.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.8, 0.9),
        fused=False,
        foreach=False,
    )
    ids = torch.from_numpy(data.tokens("train").astype("int64"))
    for step in range(3):
        result = update(trainer, step, 0.5 * learning_rate_at(step, 5, config))
        starts = window_starts(CONFIG.seed, 8 * step, 8, len(ids), 16)
        x = torch.stack([ids[s : s + 16] for s in starts])
        y = torch.stack([ids[s + 1 : s + 17] for s in starts])
        logits = plain(x)
        expected = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        for group in adamw.param_groups:
            group["lr"] = 0.5 * 1e-2 * (1 if schedule == "constant" else 1 - step / 5)
        adamw.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        expected_norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        for g in gradients:
            g.mul_(min(1.0, 0.5 / expected_norm))
        adamw.step()
        assert result.finite
        assert result.loss == pytest.approx(expected.item(), rel=1e-6)
        assert result.grad_norm == pytest.approx(expected_norm, rel=1e-5)
        assert result.grad_norm > 0.5  # clipping is at work
        for a, b in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            # where a gradient is near 0, its sign, and so AdamW's step, hangs on rounding
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_clipping_the_gradient_is_as_it_is(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    trainer = make(data, tiny_config, cpu, replace(CONFIG, grad_clip=0.0))
    norm = update(trainer, 0, 0.0).grad_norm
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_losses_do_not_depend_on_the_rows_at_a_time(
    trainer: Trainer, data: DataFolder, tiny_config: ModelConfig, cpu: Device, batch_size: int
) -> None:
    in_parts = make(data, tiny_config, cpu, replace(CONFIG, batch_size=batch_size))
    whole, parts = ([update(s, step, LR) for step in range(10)] for s in (trainer, in_parts))
    assert [u.loss for u in parts] == pytest.approx([u.loss for u in whole], rel=1e-4)
    assert [u.grad_norm for u in parts] == pytest.approx([u.grad_norm for u in whole], rel=1e-3)
    assert whole[-1].loss < whole[0].loss - 0.3  # it learned


def test_dropout_of_a_step_depends_on_the_seed_and_the_step_alone(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    shape = replace(tiny_config, dropout=0.5)

    def loss(step: int, seed: int = 1337) -> float:
        trainer = make(data, shape, cpu, replace(CONFIG, seed=seed))
        torch.rand(3)  # someone else draws
        return update(trainer, step, LR).loss

    assert loss(step=3) == loss(step=3)
    assert len({loss(step=3), loss(step=4), loss(step=3, seed=1)}) == 3


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_not_a_bit_changes_when_the_loss_is_not_finite(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, damage: float, optimizer: Any
) -> None:
    trainer = make(data, tiny_config, cpu, replace(CONFIG, optimizer=optimizer))
    update(trainer, 0, LR)
    scales = dict(trainer.model.named_parameters())["ln_f.weight"].data
    sound = scales[0].item()
    scales[0] = damage
    before = bits(trainer)
    result = update(trainer, 1, LR)
    assert not result.finite
    assert not math.isfinite(result.loss)
    assert bits(trainer) == before
    scales[0] = sound
    assert update(trainer, 1, LR).finite  # and it can go on


def test_not_a_bit_changes_when_only_the_gradient_is_not_finite(trainer: Trainer) -> None:
    update(trainer, 0, LR)
    before = bits(trainer)
    handle = spoil(trainer.model.wte.weight)
    result = update(trainer, 1, LR)
    assert (math.isfinite(result.loss), result.finite) == (True, False)
    assert bits(trainer) == before
    handle.remove()
    assert update(trainer, 1, LR).finite


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("where", ["forward", "backward", "second"])
def test_out_of_memory_ends_in_what_fewer_rows_would_have_given_from_the_beginning(
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    caplog: pytest.LogCaptureFixture,
    where: str,
    dropout: float,
) -> None:
    def fail(forward: Giving, x: Tensor, loss: Tensor) -> Tensor:
        if len(x) <= 2 or (where == "second" and forward.rows.count(len(x)) % 2):
            return loss
        if where == "backward":
            return FailsBackward.apply(loss)  # type: ignore[no-untyped-call, no-any-return]
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    shape = replace(tiny_config, dropout=dropout)
    config = replace(CONFIG, batch_size=8 if where != "second" else 4)
    crowded = make(data, shape, cpu, config)
    giving = Giving(crowded, fail)
    roomy = make(data, shape, cpu, replace(CONFIG, batch_size=2))
    with caplog.at_level(logging.WARNING):
        assert update(crowded, 0, LR) == update(roomy, 0, LR)
    expected = [8, 4, 2, 2, 2, 2] if where != "second" else [4, 4, 2, 2, 2, 2]
    assert giving.rows == expected
    assert caplog.messages[-1] == (
        "out of memory: from now on 4 x 2 rows of 16, as many tokens a step as before"
    )
    assert update(crowded, 1, LR) == update(roomy, 1, LR)
    assert bits(crowded) == bits(roomy)
    assert crowded.state_dict()["batch_size"] == 2


def test_rows_that_do_not_halve_evenly_end_in_a_smaller_micro_batch(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    def fail(forward: Giving, x: Tensor, loss: Tensor) -> Tensor:
        if len(x) > 3:  # as the CPU's allocator says it
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12")
        return loss

    config = replace(CONFIG, tokens_per_step=16 * 15, batch_size=15)
    trainer = make(data, tiny_config, cpu, config)
    giving = Giving(trainer, fail)
    result = update(trainer, 0, LR)
    whole = update(make(data, tiny_config, cpu, config), 0, LR)
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    assert giving.rows == [15, 5, 2, 2, 2, 2, 2, 2, 2, 1]


def test_no_room_for_a_single_row_is_a_sentence(trainer: Trainer) -> None:
    def fail(forward: Giving, x: Tensor, loss: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    giving = Giving(trainer, fail)
    with pytest.raises(ConfigError, match=r"^out of memory with a single row of 16 tokens: "):
        update(trainer, 0, LR)
    assert giving.rows == [8, 4, 2, 1]


def test_no_room_for_the_optimizer_is_a_sentence(trainer: Trainer) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.optimizer.step = full  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"^out of memory in the optimizer\. "):
        update(trainer, 0, LR)


def test_other_errors_are_raised_as_they_are(trainer: Trainer) -> None:
    def fail(forward: Giving, x: Tensor, loss: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    Giving(trainer, fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        update(trainer, 0, LR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_come_close_to_float32(
    trainer: Trainer, data: DataFolder, tiny_config: ModelConfig, dtype: torch.dtype
) -> None:
    half = make(data, tiny_config, replace(HALF, dtype=dtype))
    for step in range(5):
        full, narrow = update(trainer, step, LR), update(half, step, LR)
        assert full.loss != narrow.loss == pytest.approx(full.loss, rel=5e-3)
        assert narrow.grad_norm == pytest.approx(full.grad_norm, rel=2e-2)


def test_a_loss_scale_that_is_too_large_is_halved_and_the_step_redone(
    data: DataFolder, tiny_config: ModelConfig
) -> None:
    too_large = make(data, tiny_config, HALF)
    too_large.load_state_dict(too_large.state_dict() | {"loss_scale": 2.0**30})
    result = update(too_large, 0, LR)
    found = too_large.state_dict()["loss_scale"]
    assert result.finite
    assert 1 < found < 2.0**30
    fitting = make(data, tiny_config, HALF)
    fitting.load_state_dict(fitting.state_dict() | {"loss_scale": found})
    assert update(fitting, 0, LR) == result
    assert bits(too_large) == bits(fitting)


def test_a_gradient_that_no_loss_scale_mends_is_not_finite(
    data: DataFolder, tiny_config: ModelConfig
) -> None:
    trainer = make(data, tiny_config, HALF)
    update(trainer, 0, LR)
    trainer.load_state_dict(trainer.state_dict() | {"loss_scale": 8.0})  # which halvings end soon
    before = bits(trainer)
    spoil(trainer.model.wte.weight)
    assert not update(trainer, 1, LR).finite
    assert bits(trainer) == before


def test_the_loss_scale_grows_again_and_comes_back_from_a_checkpoint(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    trainer = make(data, tiny_config, HALF)
    assert trainer.state_dict()["loss_scale"] == INITIAL_SCALE
    trainer.load_state_dict(
        trainer.state_dict() | {"loss_scale": 8.0, "n_unscaled": GROWTH_INTERVAL - 2}
    )
    update(trainer, 0, LR)
    other = make(data, tiny_config, HALF)
    other.load_state_dict(trainer.state_dict())
    for each in (trainer, other):
        update(each, 1, LR)
        assert each.state_dict()["loss_scale"] == 16.0
    # a run that goes on where numbers are wider needs no scale
    wide = make(data, tiny_config, cpu)
    wide.load_state_dict(trainer.state_dict())
    assert wide.state_dict()["loss_scale"] == 1.0


def test_small_gradients_survive_float16_through_the_loss_scale(
    data: DataFolder, tiny_config: ModelConfig
) -> None:
    def zeros(scale: float) -> int:
        trainer = make(data, tiny_config, HALF)
        trainer.load_state_dict(trainer.state_dict() | {"loss_scale": scale})
        update(trainer, 0, 0.0)
        gradients = [p.grad for p in trainer.model.h.parameters() if p.grad is not None]
        return sum(int((gradient == 0).sum()) for gradient in gradients)

    # as gradients a million times as small would fare without it
    assert (zeros(2.0**-20) > 500, zeros(INITIAL_SCALE)) == (True, 0)
