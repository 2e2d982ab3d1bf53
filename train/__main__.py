"""The commands of train: python -m train."""

from common.options import run
from train.cli import main

run(main, "train")
