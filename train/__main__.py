"""The commands of train: python -m train."""

try:
    from common.errors import run
    from train.cli import main

    run(main, "train")
except KeyboardInterrupt:  # Ctrl-C before there is anything to clean up, or after
    raise SystemExit(130) from None
