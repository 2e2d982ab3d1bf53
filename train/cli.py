"""The command line of train.

python -m train pretrain --data data                      the preset for this machine
python -m train pretrain --data data --run shakespeare --minutes 10
python -m train pretrain --data data --max-steps 2000 --n-layer 4 --n-embd 128
python -m train resume                                    the newest run, from where it stopped
python -m train presets                                   what the presets set
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from common.config import ARCHITECTURES, ModelConfig
from common.errors import ConfigError
from common.options import CONTEXT, device_option, given, options_for, runs_dir_option
from train.config import TrainConfig
from train.presets import DECIDED, PRESETS


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train a GPT on a data folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@main.command()
@click.option(
    "--data", type=click.Path(path_type=Path), default="data", help="Folder written by prepare."
)
@click.option("--run", "name", default="quern", help="Name of the run; NAME-2 if it exists.")
@click.option(
    "--preset",
    type=click.Choice(["auto", *PRESETS]),
    default="auto",
    help="Where settings not given here come from; auto: tiny on a CPU, else small.",
)
@click.option(
    "--architecture",
    type=click.Choice(list(ARCHITECTURES)),
    default=None,
    help="Set the network's switches at once.  [default: the preset's]",
)
@click.option(
    "--resume/--no-resume",
    "may_resume",
    default=False,
    help="Go on with the newest run of this name if it is unfinished and has the same data.",
)
@device_option
@runs_dir_option
@options_for(ModelConfig, without=("vocab_size",), preset=DECIDED)
@options_for(TrainConfig, preset=DECIDED)
def pretrain(
    data: Path,
    name: str,
    preset: str,
    architecture: str | None,
    may_resume: bool,
    device: str,
    runs_dir: Path,
    **options: Any,
) -> None:
    """Train a new network on DATA.

    Ctrl-C finishes the step, saves, and says how to go on. Exit codes: 0 trained, 1 something to
    mend, 2 wrong usage, 130 or 143 stopped by a signal with everything saved.
    """
    from train import start

    _refuse_many_processes()
    if may_resume and (unfinished := start.unfinished_run(runs_dir, name, data)) is not None:
        click.echo(
            f"{unfinished} is unfinished: it goes on with its own settings, not with those given "
            "now. --no-resume starts a new run.",
            err=True,
        )
        _finish(start.resume_run(unfinished, device))
        return
    _finish(
        start.new_run(
            data,
            runs_dir,
            name,
            preset,
            device,
            model_options=ARCHITECTURES.get(architecture or "", {}) | given(ModelConfig, options),
            train_options=given(TrainConfig, options),
        )
    )


@main.command()
@click.argument("name", required=False)
@device_option
@runs_dir_option
def resume(name: str | None, device: str, runs_dir: Path) -> None:
    """Go on with run NAME (the newest by default) as if it had never stopped."""
    from common.checkpoint import find_run
    from train import start

    _refuse_many_processes()
    _finish(start.resume_run(find_run(runs_dir, name), device))


def _refuse_many_processes() -> None:
    n_processes = os.environ.get("WORLD_SIZE", "1")  # as torchrun sets it
    if n_processes != "1":
        raise ConfigError(
            f"WORLD_SIZE is {n_processes}, but training uses one process so far: start it without "
            "torchrun."
        )


def _finish(stopped_by: int | None) -> None:
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


@main.command()
def presets() -> None:
    """List the presets and what they set."""
    for name, preset in PRESETS.items():
        click.echo(f"{name}: {preset.meaning}")
        for key, value in (preset.model | preset.train).items():
            click.echo(f"  --{key.replace('_', '-')} {value}")
