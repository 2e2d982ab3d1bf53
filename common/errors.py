"""What a person can mend, said in a sentence: what, where, found against expected, what to do.

UserError
 |- ConfigError       settings that do not go together
 |- DataError         sources, or a data folder, that cannot be used as they are
 |- CheckpointError   a run or one of its checkpoints that cannot be used as it is

click prints them without a traceback and exits with 1. A wrong call in code is a ValueError
instead.
"""

import click

EXIT_SKIPPED = 3  # done, but something was left out
EXIT_SIGINT = 130  # stopped by Ctrl-C with everything saved: 128 + the signal's number
EXIT_SIGTERM = 143


class UserError(click.ClickException):
    """An error that the person who typed the command can mend; exit code 1."""


class ConfigError(UserError):
    """Settings that do not go together."""


class DataError(UserError):
    """Sources, or a data folder, that cannot be used as they are."""


class CheckpointError(UserError):
    """A run or a checkpoint that cannot be used as it is."""
