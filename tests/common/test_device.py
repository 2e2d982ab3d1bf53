"""The device is decided once, said in a line, or refused in a sentence."""

import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from common.device import Device, choose_device, is_out_of_memory, set_matmul_precision
from common.errors import ConfigError
from tests.processes import REPOSITORY


def test_the_cpu_computes_in_float32() -> None:
    device = choose_device("cpu")
    assert (device.torch_device, device.dtype) == (torch.device("cpu"), torch.float32)
    assert str(device) == f"cpu, float32: {torch.get_num_threads()} threads, as asked for"
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_on_a_cpu_one_trains_in_bfloat16_where_it_multiplies_that_or_as_asked(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16, "amx_bf16": False}
    )
    chosen = {dtype: choose_device("cpu", dtype).dtype for dtype in ("auto", "float32", "bfloat16")}
    fastest = torch.bfloat16 if has_bfloat16 else torch.float32
    assert chosen == {"auto": fastest, "float32": torch.float32, "bfloat16": torch.bfloat16}
    assert choose_device("cpu").dtype == torch.float32, "of what does not train"


FAULTS = """
import resource
import torch
from common.device import choose_device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        held = [torch.ones(1 << 21) for _ in range(10)]  # each 8 MB: 2,048 pages of 4 KB
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
choose_device("cpu")
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asked of glibc only")
def test_memory_that_a_tensor_freed_is_not_cleared_again_for_the_next() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert int(ended.stdout) < 2_048, "30 tensors of 2,048 pages each"


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


@pytest.mark.parametrize(
    ("has_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_a_gpu_computes_in_the_sixteen_bits_it_has(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, dtype: torch.dtype
) -> None:
    fake = {
        "device": lambda device: nullcontext(),
        "is_bf16_supported": lambda including_emulation: has_bfloat16,
        "get_device_name": lambda device: "Tesla V100",
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    device = choose_device("cuda:1")
    assert device.dtype == dtype
    assert str(device).endswith(": Tesla V100, as asked for")


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    # for real: the CPU's allocator refuses 2^60 bytes
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    said = [
        refused.value,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ]
    assert all(is_out_of_memory(error) for error in said)
    for other in (
        RuntimeError("shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(),
    ):
        assert not is_out_of_memory(other)


def test_fast_products_are_still_those_of_float32() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    before = torch.get_float32_matmul_precision()
    try:
        set_matmul_precision(torch.device("cpu"))
        error = (a @ b - (a.double() @ b.double())).abs().max()
    finally:
        torch.set_float32_matmul_precision(before)
    # sums of 256 products of about 1; rounded to bfloat16 first, they would be 0.1 off
    assert error < 1e-4
    rounded = (a.bfloat16().float() @ b.bfloat16().float() - a.double() @ b.double()).abs().max()
    assert rounded > 1e-2
