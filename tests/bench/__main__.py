"""Print figures against peers: python -m tests.bench [STAGE]..., all of STAGES by default."""

import sys
from importlib import import_module

STAGES = (
    "prepare",
    "train",
    "learning",
    "compressors",
    "endurance",
    "answers",
    "sample",
    "serve",
    "contention",
    "tracing",
    "gpu",
)

if __name__ == "__main__":
    wanted = sys.argv[1:] or STAGES
    unknown = set(wanted) - set(STAGES)
    if unknown:
        sys.exit(f"bench: no {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}.")
    for stage in wanted:
        import_module(f"tests.bench.{stage}").main()
