"""The commands of sample: python -m sample."""

from common.options import run
from sample.cli import main

run(main, "sample")
