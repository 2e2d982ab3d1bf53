"""A long run of `tiny`: what it loses beside its updates, and whether its memory grows.

The run is the trainer's own loop, with all it writes and shows, on tinyshakespeare's characters;
the one evaluation and the one save, at its end, are not counted.
"""

import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.dataset import open_data
from common.device import choose_device
from common.models.config import ModelConfig
from tests.bench.learning import SHARED
from tests.train.runs import make_trainer
from train.config import TrainConfig, TrainPlan
from train.loop import train
from train.monitoring.loggers import make_logger
from train.monitoring.metrics import Progress
from train.presets import PRESETS
from train.setup.autotune import choose_batch_size
from train.setup.network import initial_model
from train.signals import StopRequest
from train.trainer import Run

N_STEPS = 20_000
SETTLED = 1_000  # steps after which memory is expected to have all it needs


class Memory(logging.Handler):
    """Notes the resident memory, in bytes, at each line that the loop shows."""

    def __init__(self) -> None:
        super().__init__()
        self.at_step: dict[int, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line such as "step 100/20,000 | ..."; others are of no interest."""
        said = record.getMessage()
        if said.startswith("step "):
            step = int(said.split()[1].split("/")[0].replace(",", ""))
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.at_step[step] = pages * resource.getpagesize()


def main(n_steps: int = N_STEPS, settled: int = SETTLED) -> None:
    """Print both figures of one run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare = [sys.executable, "-m", "prepare", "text", str(SHARED / "tinyshakespeare.txt")]
        subprocess.run(
            [*prepare, "--tokenizer", "char", "--out", str(folder / "data")], check=True,
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        data, device = open_data(folder / "data"), choose_device("cpu", "auto")
        preset, tokenizer = PRESETS["tiny"], data.tokenizer()
        chosen = preset.model_for(tokenizer.kind, data.n_tokens("train"))
        shape = ModelConfig(**chosen, vocab_size=tokenizer.vocab_size)
        config = TrainConfig(**preset.train | {"log_interval": 100})
        model = initial_model(shape, config, None, data.tokens("train")).train()
        plan = TrainPlan(
            max_steps=n_steps, batch_size=choose_batch_size(config, shape, device),
            eval_interval=n_steps, save_interval=n_steps, compile="off",
        )  # fmt: skip
        trainer = make_trainer(model, data, config, device, batch_size=plan.batch_size)
        (folder / "run").mkdir()
        logger = make_logger("none", folder / "run", 0, {})
        run = Run(folder / "run", trainer, plan, data, tokenizer, logger)
        memory, log, progress = Memory(), logging.getLogger("train.loop"), Progress()
        log.addHandler(memory)
        log.setLevel(logging.INFO)
        log.propagate = False
        start = time.perf_counter()
        with StopRequest() as stop:
            stop.wait_for_steps()
            train(run, progress, stop)
        seconds = time.perf_counter() - start - progress.eval_s - progress.save_s
    before, after = memory.at_step[settled], memory.at_step[n_steps]
    sys.stdout.write(
        f"\ntiny, {n_steps:,} steps in {seconds:,.0f} s\n"
        f"time outside the updates: {1 - progress.update_s / seconds:.2%}\n"
        f"memory after step {settled:,}: {before / 1e6:,.1f} MB, after the last: "
        f"{after / 1e6:,.1f} MB: {(after - before) / 1e6:+,.1f} MB\n"
    )


if __name__ == "__main__":
    main()
