"""The commands of prepare: python -m prepare."""

from common.options import run
from prepare.cli import main

run(main, "prepare")
