"""How a stage's commands run and end, and the options that several of them have."""

import atexit
import errno
import gc
import os
import signal
import sys
from pathlib import Path

import click

from common.errors import EXIT_SIGINT, EXIT_SIGTERM

# New objects after which Python looks for cycles of forgotten ones. At its own 700 it looks for
# 0.3 of the 1.7 s that importing torch takes, and finds next to nothing.
COLLECT_AFTER = 100_000

CONTEXT = {"show_default": True, "max_content_width": 100}

runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    help="Folder that holds the runs.",
)
device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")


def run(group: click.Group, stage: str) -> None:
    """Run a stage's commands and exit: 0, 1 for a UserError, 2 for usage, 130 or 143 stopped."""
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)  # at its end Python looks for cycles once more: 0.3 s after torch
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_SIGTERM))  # files are cleaned up
    try:
        code = group.main(prog_name=f"python -m {stage}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(EXIT_SIGINT)
    except OSError as error:
        if error.errno != errno.EPIPE:  # a full disk, a folder that may not be written ...
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"Error: {where}{error.strerror or error}.", err=True)
            sys.exit(1)
        # the reader of our output went away, as head does; flushing again at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
