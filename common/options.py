"""Config dataclass -> click options, and how a command ends.

A new setting is one line in its config and nothing here.
"""

import atexit
import errno
import gc
import os
import signal
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from common.errors import EXIT_SIGINT, EXIT_SIGTERM

Command = TypeVar("Command", bound=Callable[..., Any])

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


class AutoOrInt(click.IntRange):
    """A whole number, or the word auto, which stands for 0."""

    def convert(self, value: Any, *context: Any) -> Any:
        """Return the number."""
        return 0 if value == "auto" else super().convert(value, *context)


def _click_type(kind: Any, item: "Field[Any]") -> Any:
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    at_least, below = item.metadata["at_least"], item.metadata["below"]
    if kind is int and at_least is not None:
        range_kind = AutoOrInt if item.metadata["auto"] else click.IntRange
        return range_kind(min=int(at_least))
    if kind is float and at_least is not None:
        return click.FloatRange(min=at_least, max=below, max_open=below is not None)
    return kind


def _shown_default(item: "Field[Any]", preset: Collection[str]) -> str | bool:
    if item.name in preset:
        return "the preset's"
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return item.default is not None and str(item.default)


def options_for(
    config: type, *, without: Collection[str] = (), preset: Collection[str] | None = None
) -> Callable[[Command], Command]:
    """Give a click command one option for each setting of a config dataclass.

    With ``preset``, the names of the settings that presets decide, all options default to None
    and the caller fills the values in; help still says what they will be.
    """
    kinds = get_type_hints(config)

    def add_options(command: Command) -> Command:
        for item in reversed(fields(config)):  # decorators stack from the bottom up
            if item.name in without:
                continue
            name = item.name.replace("_", "-")
            is_flag = kinds[item.name] is bool
            command = click.option(
                f"--{name}/--no-{name}" if is_flag else f"--{name}",
                type=_click_type(kinds[item.name], item),
                default=item.default if preset is None else None,
                show_default=item.default is not None
                if preset is None
                else _shown_default(item, preset),
                help=item.metadata["help"],
            )(command)
        return command

    return add_options


def given(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a command's options that are settings of ``config`` and were given."""
    names = {item.name for item in fields(config)}
    return {name: value for name, value in options.items() if name in names and value is not None}


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
