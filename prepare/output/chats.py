"""What a data folder of conversations holds beside ids: its template, and meta.json's ``chats``."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.chat_format import CHAT_TEMPLATE, LEARNED, TEMPLATE_NAME
from common.dataset import SPLITS
from common.errors import DataError
from common.files import write_text
from prepare.output.commit import Files

BLOCK_BYTES = 1 << 20  # of a mask, counted at a time
PAIRS = "pairs"  # the shape of preference pairs


def add_template(files: Files, folder: Path) -> None:
    """Write the chat template into ``folder``, among the files of a data set."""
    files[TEMPLATE_NAME] = folder / TEMPLATE_NAME
    write_text(files[TEMPLATE_NAME], CHAT_TEMPLATE)


def chats_meta(counts: Counter[str], files: Files, context: int) -> dict[str, Any]:
    """Return what meta.json says of conversations: their shapes, and what was done with them.

    Raise DataError where pairs and plain conversations are mixed.
    """
    grouped: dict[str, dict[str, int]] = {"shapes": {}, "missing": {}}
    plain = {}
    for key, count in counts.items():
        group, _, what = key.partition("/")
        if what:
            grouped[group][what] = count
        else:
            plain[key] = count
    n_pairs, n_all = grouped["shapes"].get(PAIRS, 0), sum(grouped["shapes"].values())
    if 0 < n_pairs < n_all:
        raise DataError(
            f"{n_pairs:,} preference pairs among {n_all:,} conversations: a data folder holds "
            "the one or the other. Prepare them apart, each with an --out of its own."
        )
    learned = {split: _n_learned(files[f"{split}.mask"]) for split in SPLITS}
    return {"context": context, "pairs": n_pairs > 0, **grouped, **plain, "learned": learned}


def _n_learned(path: Path) -> int:
    n_learned = 0
    with path.open("rb") as file:
        while len(mask := np.fromfile(file, np.uint8, BLOCK_BYTES)):
            n_learned += int(np.count_nonzero(mask & LEARNED))
    return n_learned
