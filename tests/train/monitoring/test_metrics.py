"""What is left of a run as the loop would count it; operations a token by hand; peaks of GPUs."""

import pytest
import torch

from common.device import Device
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from train.config import TrainPlan
from train.monitoring.metrics import flops_per_token, mfu


@pytest.mark.parametrize(
    ("max_steps", "eval_interval", "save_interval"),
    [(12, 4, 2), (12, 6, 3), (13, 5, 1), (7, 10, 10), (6, 6, 4), (100, 10, 30)],
)
def test_what_remains_are_the_updates_evaluations_and_saves_that_the_loop_makes(
    max_steps: int, eval_interval: int, save_interval: int
) -> None:
    plan = TrainPlan(
        max_steps=max_steps, batch_size=1, eval_interval=eval_interval,
        save_interval=save_interval, compile="off",
    )  # fmt: skip
    is_even = max_steps % eval_interval == eval_interval % save_interval == 0
    for step in range(1, max_steps + 1):
        rest = range(step, max_steps + 1)  # after update ``step``, whose own are not made yet
        evals = [s for s in rest if s % eval_interval == 0 or s == max_steps]
        saves = [s for s in rest if s % save_interval == 0 or s in evals]
        expected = len(rest) - 1 + 1e3 * len(evals) + 1e6 * len(saves)
        tolerance = 0 if is_even else 1e3 + 1e6  # one of each
        assert plan.remaining_s(step, 1.0, 1e3, 1e6) == pytest.approx(expected, abs=tolerance)


GPU = Device(torch.device("cuda"), torch.bfloat16, "a test")
NAMES = {
    "NVIDIA H200": 989.4e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce GTX 1080": None,
    "AMD Instinct MI300X": None,
}


@pytest.mark.parametrize("tied", [True, False])
def test_six_a_weight_and_twelve_a_pair_of_tokens(tied: bool) -> None:
    shape = ARCHITECTURES["gpt2"] | {"tied_head": tied}
    config = ModelConfig(**shape, vocab_size=50, block_size=32, n_layer=2, n_head=2, n_embd=8)
    # a block: 8 x 24 + 8 x 8 + 2 x 8 x 32 weights; the head 50 x 8; embeddings cost nothing
    expected = 6 * (2 * (192 + 64 + 512) + 400) + 12 * 2 * 8 * 32
    assert flops_per_token(GPT(config)) == expected


@pytest.mark.parametrize(("name", "peak"), NAMES.items())
def test_utilization_is_of_the_peak_that_the_name_tells_in_each_process(
    tiny_config: ModelConfig, name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    model = GPT(tiny_config)
    half = 0.5 * (peak or 1.0) / flops_per_token(model)  # tokens a second
    expected = None if peak is None else pytest.approx(0.5)
    assert mfu(model, GPU, half, world_size=1) == expected
    assert mfu(model, GPU, 8 * half, world_size=8) == expected


def test_there_is_none_without_a_gpu_or_in_float32(tiny_config: ModelConfig, cpu: Device) -> None:
    in_float32 = Device(torch.device("cuda"), torch.float32, "a test")
    for device in (cpu, in_float32):
        assert mfu(GPT(tiny_config), device, 1000.0, world_size=1) is None
