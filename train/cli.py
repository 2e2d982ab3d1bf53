"""The command line of train: options, and which function does it."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.models.config import ARCHITECTURES, ModelConfig
from common.settings import CONTEXT, Command, device_option, given, options_for, runs_dir_option
from train.config import FREE_UNLESS_LEARNED, TrainConfig
from train.presets import DECIDED, PRESETS, SHOWN, SHOWN_OF_MODEL
from train.signals import StopRequest

if TYPE_CHECKING:
    from train.distributed.comm import ProcessGroup

PATH = click.Path(path_type=Path)
resume_option = click.option(
    "--resume/--no-resume", "may_resume", default=False,
    help="Go on with the newest run of this name if it is unfinished and has the same data.",
)  # fmt: skip
SUFFIX = {"finetune": "chat", "preference": "preferred"}  # of what their runs are called


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Train a GPT on a data folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@main.command()
@click.option("--data", type=PATH, default="data", help="Folder written by prepare.")
# --run-name: torchrun takes --run for a shortened option of its own, and ends
@click.option("--run", "--run-name", "name", default="quern", help="Its name; NAME-2 if it exists.")
@click.option(
    "--preset",
    type=click.Choice(["auto", *PRESETS]),
    default="auto",
    help="Where settings not given come from; auto: tiny, with time larger, on a CPU, else small.",
)
@click.option(
    "--architecture", type=click.Choice(ARCHITECTURES), help="Set the network's switches at once."
)
@resume_option
@click.option(
    "--init-from", metavar="RUN[:best|:latest]", help="Begin with this run's weights and its shape."
)
@device_option
@runs_dir_option
@options_for(ModelConfig, without=("vocab_size",), preset=DECIDED)
@options_for(TrainConfig, without=("mix", "lora", "lora_alpha", "beta"), preset=DECIDED)
def pretrain(
    data: Path,
    name: str,
    preset: str,
    architecture: str | None,
    may_resume: bool,
    init_from: str | None,
    device: str,
    runs_dir: Path,
    **options: Any,
) -> None:
    """Train a new network on DATA.

    Ctrl-C finishes the step, saves, and says how to go on; a second one leaves at once. Exit codes:
    0 trained, 1 something to mend, 2 wrong usage; 130, 143, 138 or 129 stopped by SIGINT (Ctrl-C),
    SIGTERM, SIGUSR1 or SIGHUP (the connection is lost) with everything saved.

    \b
    Several processes, a GPU each or on CPUs (--shard spreads weights too; --resume goes on):
      torchrun --nproc-per-node 2 -m train pretrain --data data --run-name wide
    Several nodes: the same line on each, and behind torchrun
      --nnodes N --rdzv-backend c10d --rdzv-id quern --rdzv-endpoint HOST:29500
    Slurm: srun torchrun ..., and before it
      #SBATCH --signal=TERM@120 --requeue
      export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
    """
    with _job(device) as (stop, group, device):
        from train import pretrain as start

        if unfinished := may_resume and start.unfinished_on(runs_dir, name, data, group):
            stopped_by = start.resume_run(unfinished, device, stop, group=group)
        else:
            switches = ARCHITECTURES[architecture] if architecture else {}
            stopped_by = start.new_run(
                data, runs_dir, name, preset, device, stop,
                model_options=switches | given(ModelConfig, options),
                train_options=given(TrainConfig, options),
                init_from=start.weights_of(runs_dir, init_from) if init_from else None,
                group=group,
            )  # fmt: skip
    sys.exit(128 + stopped_by if stopped_by else 0)


def tuning_options(command: str, *, without: Sequence[str]) -> Callable[[Command], Command]:
    """Give a command that goes on from a run's weights its options."""
    decorators = [
        click.option(
            "--from", "base", metavar="RUN[:best|:latest]", required=True,
            help="Begin with its weights.",
        ),
        click.option("--data", type=PATH, default="chats", help="Folder written by prepare chats."),
        click.option(
            "--run", "--run-name", "name",
            help=f"Its name; NAME-2 if it exists.  [default: RUN-{SUFFIX[command]}]",
        ),
        resume_option,
        device_option,
        runs_dir_option,
        options_for(
            ModelConfig,
            without=ModelConfig.__annotations__.keys() - FREE_UNLESS_LEARNED,
            preset=SHOWN_OF_MODEL[command],
        ),
        options_for(TrainConfig, without=without, preset=SHOWN[command]),
    ]  # fmt: skip
    return lambda function: reduce(lambda made, add: add(made), reversed(decorators), function)


@main.command()
@tuning_options("finetune", without=("beta",))
def finetune(**options: Any) -> None:
    """Teach the network of a run to answer, by the conversations in DATA.

    Only the assistant's words are learned. What is not given is as RUN was trained, but for a lower
    rate, a few epochs, and an end where the val loss rises. Exit codes are pretrain's.
    """
    _tune("finetune", **options)


@main.command()
@tuning_options("preference", without=("mix",))
def preference(**options: Any) -> None:
    """Teach the network of a run which of two answers is better, by the pairs in DATA.

    By direct preference optimisation: the better ones become likelier than they were to RUN, the
    others less. What is not given is as for finetune, but for a lower rate and one epoch.
    """
    _tune("preference", **options)


def _tune(
    command: str,
    base: str,
    data: Path,
    name: str | None,
    may_resume: bool,
    device: str,
    runs_dir: Path,
    **options: Any,
) -> None:
    """Begin a run with another's weights, or go on with it."""
    with _job(device) as (stop, group, device):
        from common.dataset import open_data
        from train import finetune as tuning
        from train import pretrain as start

        name = name or f"{Path(base.partition(':')[0]).name}-{SUFFIX[command]}"
        if unfinished := may_resume and start.unfinished_on(runs_dir, name, data, group):
            stopped_by = start.resume_run(unfinished, device, stop, group=group)
        else:
            weights = start.weights_of(runs_dir, base)
            stopped_by = start.new_run(
                data, runs_dir, name, tuning.preset_of(weights), device, stop,
                model_options=tuning.dropouts(command, weights, given(ModelConfig, options)),
                train_options=tuning.finetune_options(
                    command, weights, open_data(data), given(TrainConfig, options)
                ),
                init_from=weights, group=group,
            )  # fmt: skip
    sys.exit(128 + stopped_by if stopped_by else 0)


class ResumeCommand(click.Command):
    """Says of an option that only a new run takes why it is none here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if all(name not in option.opts for option in pretrain.params):
                raise
            raise click.UsageError(
                f"{name} is of a run's beginning, and stays as it was. Train a new run from this "
                f"one's weights: python -m train pretrain --init-from RUN {name} ...",
                ctx,
            ) from error


@main.command("resume", cls=ResumeCommand)
@click.argument("name", required=False)
@click.option("--max-steps", type=click.IntRange(min=1), help="Train to this many updates in all.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Train so much longer."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Rows at a time. It changes no result."
)
@click.option("--data", "data_path", type=PATH, help="Where its data is now, if it moved.")
@click.option(
    "--allow-data-change", is_flag=True,
    help="Go on although the data is not what it was; its vocabulary must be.",
)  # fmt: skip
@click.option("--shard/--no-shard", default=None, help="Shard the weights from now on, or not.")
@device_option
@runs_dir_option
def resume_(name: str | None, device: str, runs_dir: Path, **changes: Any) -> None:
    """Go on with run NAME (the newest by default) as if it had never stopped."""
    with _job(device) as (stop, group, device):
        from common.run_dir import find_run
        from train.pretrain import Changes, resume_run

        run = group.broadcast_from_rank0(lambda: str(find_run(runs_dir, name, imported=False)))
        stopped_by = resume_run(Path(run), device, stop, Changes(**changes), group)
    sys.exit(128 + stopped_by if stopped_by else 0)


@main.command("import")
@click.argument("source")
@click.option("--run", "name", required=True, help="Its name; NAME-2 if it exists.")
@click.option("--tokenizer", default="", show_default="its own", help="A meta.pkl, data or run.")
@runs_dir_option
def import_(**options: Any) -> None:
    """Make a run of SOURCE: transformers' folder or hub name, nanoGPT's ckpt.pt, llm.c's .bin."""
    from train.setup.import_folder import import_folder

    import_folder(**options)


@main.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@click.option(
    "--x", type=click.Choice(["steps", "tokens", "seconds"]), default="steps", help="Over what."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Draw into this .png or .svg."
)
@runs_dir_option
def plot(names: tuple[str, ...], x: str, out: Path | None, runs_dir: Path) -> None:
    """Draw loss, learning rate, gradient and speed of runs (the newest by default)."""
    from common.run_dir import find_run
    from train.report.plot import draw, text_chart

    runs = [find_run(runs_dir, name) for name in names or (None,)]
    if out is None:
        click.echo(text_chart(runs, x, shutil.get_terminal_size().columns))
        return
    draw(runs, x, out)
    click.echo(f"{out}: {', '.join(str(run) for run in runs)} over {x}.", err=True)


@main.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@runs_dir_option
def compare(names: tuple[str, ...], runs_dir: Path) -> None:
    """Print a table of runs (all by default): size, tokens, time, loss, speed, what differs."""
    from common import run_dir
    from train.report.compare import compare as compare_runs

    runs = [run_dir.find_run(runs_dir, name) for name in names]
    runs = runs or sorted(run_dir.list_runs(runs_dir)) or [run_dir.find_run(runs_dir, None)]
    click.echo(compare_runs(runs))


@main.command()
@click.argument("name", type=click.Choice(list(PRESETS)), required=False)
@device_option
def presets(name: str | None, device: str) -> None:
    """List the presets with what they take on this machine, or all settings of NAME."""
    from common.device import choose_device
    from train.report.presets import preset_lines, presets_table

    click.echo("\n".join(preset_lines(name)) if name else presets_table(choose_device(device)))


@contextmanager
def _job(device: str) -> "Iterator[tuple[StopRequest, ProcessGroup, str]]":
    """Yield the request to stop, heeded from here on, torchrun's processes, this one's device."""
    with StopRequest() as stop:
        try:
            from train.distributed import comm

            info = comm.rank_info_from(os.environ)
            device = comm.rank_device(info, device)
            with comm.init_distributed(info, device) as group:
                yield stop, group, device
        except SystemExit:
            if stop.signal is not None:
                click.echo("Stopped before the first step: nothing is lost.", err=True)
            raise
