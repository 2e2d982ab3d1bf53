"""The device is decided once, said in a line, or refused in a sentence."""

import pytest
import torch

from common.device import Device, choose_device
from common.errors import ConfigError


def test_the_cpu_computes_in_float32() -> None:
    device = choose_device("cpu")
    assert (device.torch_device, device.dtype) == (torch.device("cpu"), torch.float32)
    assert str(device) == f"cpu, float32: {torch.get_num_threads()} threads, as asked for"
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_auto_takes_the_best_there_is() -> None:
    expected = "cpu"
    if torch.cuda.is_available():
        expected = "cuda"
    elif torch.backends.mps.is_available():
        expected = "mps"
    device = choose_device("auto")
    assert device.torch_device.type == expected
    assert str(device).endswith("the fastest device here")


def test_another_dtype_is_that_of_matrix_products() -> None:
    device = Device(torch.device("cpu"), torch.bfloat16, "a test")
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["cuda:63", "gpu", "", "cpu cpu", "xpu", "meta", "vulkan"])
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--device {name}: this machine cannot use it .*auto"):
        choose_device(name)
