"""The model card of an exported run: card.md, a template in Jinja, with what is known of the run.

Source: https://huggingface.co/docs/hub/model-cards
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from common.dataset import open_data
from common.errors import DataError
from common.run_dir import CONFIG_NAME, read_json, read_metrics
from sample.loaded_model import RunInfo, undertrained_warning

CARD = Path(__file__).with_name("card.md")
MOST_LOSSES = 12  # lines of the table


def model_card(info: RunInfo, kind: str, special: Iterable[str], folder: str) -> str:
    """Return README.md of a run that is exported to ``folder`` as a network of class ``kind``."""
    settings = read_json(info.folder.parent / CONFIG_NAME)
    metrics = read_metrics(info.folder.parent)
    losses = [m for m in metrics if m.get("val_loss") is not None and m["step"] <= info.step]
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["quern"]),
        template_path=str(CARD),
        info=info,
        kind=kind,
        folder=folder,
        special=special,
        warning=undertrained_warning(info),
        run=settings,
        # the context is the end of learned positions
        n_new=min(100, info.config.block_size // 2),
        splits=_splits(settings.get("data")),
        # the last, and some before it
        losses=losses[:: -(len(losses) // MOST_LOSSES + 1)][::-1],
        settings=json.dumps({key: settings.get(key) for key in ("model", "train")}, indent=1),
    )
    return f"{card}\n"


def _splits(data: dict[str, Any] | None) -> dict[str, Any]:
    """Return the counts of what a run learned from; none where its folder holds it no more."""
    with suppress(DataError):
        if data and (found := open_data(Path(data["path"]))).sha256 == data["sha256"]:
            return dict(found.meta["splits"])
    return {}
