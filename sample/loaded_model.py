"""A run -> what samples from it: a verified checkpoint, its weights packed for its device."""

from dataclasses import dataclass
from pathlib import Path

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done

from common import checkpoint, run_dir
from common.device import choose_device
from common.errors import ConfigError
from common.inference.backend import Backend, make_backend
from common.inference.decoder import Decoder
from common.tokenizer import Tokenizer
from sample.model_info import RunInfo, read_run_info


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is ready to sample from."""

    info: RunInfo
    tokenizer: Tokenizer
    backend: Backend

    @property
    def block_size(self) -> int:
        """Context length, in tokens."""
        return self.backend.config.block_size

    def decoder(self, n_rows: int = 1) -> Decoder:
        """Return a decoder with ``n_rows`` free rows."""
        return Decoder(self.backend, self.tokenizer, n_rows)


def load_model(
    run: str | None, runs_dir: Path, which: str, device: str, quantize: str
) -> LoadedModel:
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
    model = loaded.model.eval()
    if chosen.torch_device.type == "cuda":
        model.to(chosen.dtype)  # generating reads every weight once a token: halve that
    backend = make_backend(model, int8=quantize == "int8")
    return LoadedModel(read_run_info(folder, loaded), loaded.tokenizer, backend)
