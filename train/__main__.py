from common.options import run
from train.cli import main

run(main, "train")
