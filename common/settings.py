"""How a setting is declared, and the command-line option that it becomes.

A setting is one line: type, default, meaning, range. Option, help and range come from it, so help
and code cannot disagree.
"""

import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from common.errors import ConfigError

Config = TypeVar("Config")
Command = TypeVar("Command", bound=Callable[..., Any])

CONTEXT = {"show_default": True, "max_content_width": 100}  # of click's commands
SEEDS_END = 1 << 63  # what torch takes; counting on from a seed begins at 0 again there


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    below: float | None = None,
    auto: bool = False,
) -> Any:
    """Declare one field of a config: its help and its range; ``auto``: that word stands for 0."""
    metadata = {"help": meaning, "at_least": at_least, "below": below, "auto": auto}
    return field(default=default, metadata=metadata)


def check_ranges(config: Any) -> None:
    """Raise ConfigError where a setting is out of the range it was declared with."""
    for item in fields(config):
        value = getattr(config, item.name)
        at_least, below = item.metadata.get("at_least"), item.metadata.get("below")
        if value is None:
            continue
        flag = "--" + item.name.replace("_", "-")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag} is {value}: it must be a finite number.")
        if at_least is not None and value < at_least:
            raise ConfigError(f"{flag} is {value}: it must be at least {at_least}.")
        if below is not None and value >= below:
            raise ConfigError(f"{flag} is {value}: it must be below {below}.")


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a config from saved JSON; raise ConfigError that says where unknown names stand."""
    unknown = set(values) - {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigError(f"{where}: unknown settings {names}; another version of Quern wrote it.")
    return kind(**values)


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
        return preset[item.name] if isinstance(preset, Mapping) else "the preset's"
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return item.default is not None and str(item.default)


def options_for(
    config: type, *, without: Collection[str] = (), preset: Collection[str] | None = None
) -> Callable[[Command], Command]:
    """Give a click command one option for each setting of a config dataclass.

    With ``preset``, the names of the settings that presets decide, all options default to None
    and the caller fills the values in; help still says what they will be: where ``preset`` is a
    mapping, in its words.
    """
    kinds = get_type_hints(config)

    def add_options(command: Command) -> Command:
        for item in reversed(fields(config)):  # decorators stack from the bottom up
            if item.name in without:
                continue
            name = item.name.replace("_", "-")
            is_flag = kinds[item.name] is bool
            meaning: str = item.metadata["help"]
            if preset is not None and item.name in preset:
                meaning = meaning.partition("  [default: ")[0]  # another one is shown
            command = click.option(
                f"--{name}/--no-{name}" if is_flag else f"--{name}",
                type=_click_type(kinds[item.name], item),
                default=item.default if preset is None else None,
                show_default=item.default is not None
                if preset is None
                else _shown_default(item, preset),
                help=meaning,
            )(command)
        return command

    return add_options


def given(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a command's options that are settings of ``config`` and were given."""
    names = {item.name for item in fields(config)}
    return {name: value for name, value in options.items() if name in names and value is not None}


runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    help="Folder that holds the runs.",
)
device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
