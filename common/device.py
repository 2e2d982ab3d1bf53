"""Where the arithmetic runs and in which precision: decided once, said in one line."""

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from common.cpus import available_cpus
from common.errors import ConfigError

MOST_THREADS = torch.get_num_threads()  # what OpenMP's variables and the cores say at the start
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass(frozen=True)
class Device:
    """A device, the dtype of its matrix products, and why it was chosen."""

    torch_device: torch.device
    dtype: torch.dtype
    reason: str
    n_threads: int = 1  # of operations on the CPU, at most

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run in ``dtype``."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.dtype)

    def __str__(self) -> str:
        return f"{self.torch_device}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def choose_device(name: str, train_dtype: str | None = None) -> Device:
    """Return the device called ``name``; ``auto`` takes CUDA, else MPS, else the CPU.

    For training ``train_dtype`` says what matrices are multiplied in; of it, too, ``auto`` takes
    the fastest in hardware. What is not for training computes on CPUs in float32.
    """
    reason = "as asked for"
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        reason = "the fastest device here"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name}: this machine cannot use it ({first_line}). Pass --device auto."
        ) from error
    dtype, n_threads = torch.float32, 1
    if device.type == "cuda":
        with torch.cuda.device(device):  # in hardware from Ampere on
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if has_bfloat16 else torch.float16
        reason = f"{torch.cuda.get_device_name(device)}, {reason}"
    elif device.type == "cpu":
        _tune_malloc()
        n_threads = min(MOST_THREADS, available_cpus())
        torch.set_num_threads(n_threads)
        if train_dtype == "auto" and cpu_has_bfloat16():
            dtype = torch.bfloat16
        reason = f"{n_threads} threads, {reason}"
    if train_dtype not in (None, "auto"):
        dtype = getattr(torch, train_dtype)
    return Device(device, dtype, reason, n_threads)


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware.

    Training is a quarter to a half faster for it, and learns as much (tests/bench/RECIPE.md).
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _tune_malloc() -> None:
    """Have glibc keep what tensors free for the next ones, instead of giving it to the kernel.

    The kernel clears each page before it gives it out again. Kept, an update of `tiny` takes 29 ms
    in place of 34 to 41 and its evaluation half as long (tests/bench/RECIPE.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # up to this size memory comes from what is kept; old versions take no more than the second
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20):
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # bytes, the most it takes: never give back


def set_matmul_precision(device: torch.device) -> None:
    """Set the fastest precision of float32 matrix products that is good for training.

    GPUs: TF32, for what autocast leaves in float32. CPUs: oneDNN in place of MKL, on AMD's twice as
    fast and float32 all the same; not where there is AMX, or ARM's bfloat16, for it would round to
    bfloat16 what it multiplies.
    """
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        would_round = any(capabilities.get(name, False) for name in ("amx_bf16", "bf16"))
        torch.set_float32_matmul_precision("highest" if would_round else "medium")
    else:
        torch.set_float32_matmul_precision("high")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, as each device says it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # the CPU's and MPS's allocators, and libraries of CUDA's, raise plain RuntimeErrors
    said = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
