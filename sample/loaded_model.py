"""A run -> what generates from it: a verified checkpoint, its network laid out as asked for."""

from dataclasses import dataclass
from pathlib import Path

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch

from common import checkpoint, run_dir
from common.checkpoint import Checkpoint
from common.device import choose_device
from common.errors import ConfigError
from common.inference.backend import Backend
from common.inference.decoder import Decoder
from common.inference.selector import make_backend
from common.metrics import val_loss_at
from sample.chat.banner import loss_words

# Up to here one thread is as quick as several, which wait for each other more than they compute;
# and it is not slowed down by whatever else the machine does (tests/bench/GENERATION.md).
ONE_THREAD_PARAMETERS = 8_000_000


@dataclass(frozen=True)
class Ready:
    """A checkpoint's folder, what is in it, and its network laid out for generation."""

    folder: Path
    loaded: Checkpoint
    network: Backend

    def decoder(self, n_rows: int) -> Decoder:
        """Return a decoder with ``n_rows`` free rows."""
        return Decoder(self.network, self.loaded.tokenizer, n_rows)

    def described(self) -> str:
        """Return which checkpoint this is, and what training measured for it, in a line."""
        val_loss = val_loss_at(self.folder.parent, self.loaded.state["step"])
        return f"{self.folder}: {loss_words(val_loss)}"


def load(run: str | None, runs_dir: Path, which: str, device: str, quantize: str) -> Ready:
    """Return the ``which`` ("best" or "latest") checkpoint of a run, the newest run by default.

    Raises: UserError where there is none that verifies, or --quantize does not fit the device.
    """
    chosen = choose_device(device)
    if quantize == "int8" and chosen.torch_device.type != "cpu":
        raise ConfigError(
            f"--quantize int8 is for CPUs, and the device is {chosen.torch_device}: "
            "pass --device cpu, or leave it out."
        )
    folder = checkpoint.newest_valid(
        run_dir.find_run(runs_dir, run),
        "latest" if which == "latest" else "best",
        skip_optimizer=True,
    )
    loaded = checkpoint.load_checkpoint(folder, chosen.torch_device, mapped=True)
    loaded.model.eval()
    if chosen.torch_device.type == "cuda":
        loaded.model.to(chosen.dtype)  # generating reads every weight once a token: halve that
    if loaded.model.n_parameters < ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return Ready(folder, loaded, make_backend(loaded.model, int8=quantize == "int8"))
