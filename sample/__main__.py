"""The commands of sample: python -m sample."""

try:
    from common.errors import run
    from sample.cli import main

    run(main, "sample")
except KeyboardInterrupt:  # Ctrl-C before there is anything to clean up, or after
    raise SystemExit(130) from None
