"""The commands of prepare: python -m prepare."""

try:
    from common.errors import run
    from prepare.cli import main

    run(main, "prepare")
except KeyboardInterrupt:  # Ctrl-C before there is anything to clean up, or after
    raise SystemExit(130) from None
