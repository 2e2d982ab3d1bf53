"""The model card of an exported run: card.md with what is known of the run.

Source of the header: https://huggingface.co/docs/hub/model-cards
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.dataset import SPLITS, open_data
from common.errors import DataError
from common.run_dir import CONFIG_NAME, read_json, read_metrics
from sample.loaded_model import RunInfo, undertrained_warning

CARD = Path(__file__).with_name("card.md")
MOST_LOSSES = 12  # lines of the table


def model_card(info: RunInfo, kind: str, special: Iterable[str], folder: str) -> str:
    """Return README.md of a run that is exported to ``folder`` as a network of class ``kind``."""
    settings = read_json(info.folder.parent / CONFIG_NAME)
    needs_code = info.config.ngrams > 0
    notes = ["It answers." if info.is_chat else "It is a base model: it continues a text."]
    if needs_code:
        notes.append(
            "No class of transformers has its n-gram tables, so `modeling_quern.py` in this folder "
            "comes along. `trust_remote_code=True` runs it: read it first."
        )
    inputs = 'tokenizer("Once", return_tensors="pt")'
    if info.is_chat:
        inputs = (
            'tokenizer.apply_chat_template(\n    [{"role": "user", "content": "Hello"}],\n'
            '    add_generation_prompt=True, return_tensors="pt", return_dict=True,\n)'
        )
    warning = undertrained_warning(info)
    return CARD.read_text("utf-8").format(
        info=info,
        kind=kind,
        folder=folder,
        made="imported into" if "imported_from" in settings else "trained by",
        n_tokens=info.n_tokens + (info.n_base_tokens or 0),
        warning=f"\n{warning}" if warning else "",
        trust=", trust_remote_code=True" if needs_code else "",
        inputs=inputs,
        # the context is the end of learned positions
        n_new=min(100, info.config.block_size // 2),
        notes=" ".join(notes),
        special=", ".join(f"`{name}`" for name in special),
        data=_data(settings.get("data")),
        losses=_losses(info.folder.parent, info.step),
        settings=json.dumps({key: settings.get(key) for key in ("model", "train")}, indent=1),
    )


def _data(data: dict[str, Any] | None) -> str:
    """Return what is known of what a run learned from."""
    if data is None:
        return "Not known."
    said = f"SHA-256 `{data['sha256']}`"
    with suppress(DataError):
        folder = open_data(Path(data["path"]))
        if folder.sha256 == data["sha256"]:
            counts = {split: folder.meta["splits"][split] for split in SPLITS}
            parts = [
                f"{split}: {n['documents']:,} documents, {n['tokens']:,} tokens"
                for split, n in counts.items()
            ]
            return "; ".join([*parts, said]) + "."
    return f"{said}. Its folder is not there, or holds other data now: it is not counted here."


def _losses(run: Path, step: int) -> str:
    """Return a table of losses up to ``step``: of the last evaluation and some before it."""
    lines = [m for m in read_metrics(run) if m.get("val_loss") is not None and m["step"] <= step]
    if not lines:
        return "Not measured."
    rows = ["| step | val loss, nats a token | bits a byte |", "|---|---|---|"]
    for line in lines[:: -(len(lines) // MOST_LOSSES + 1)][::-1]:
        bpb = f"{line['val_bpb']:.4f}" if line.get("val_bpb") else "-"
        rows.append(f"| {line['step']:,} | {line['val_loss']:.4f} | {bpb} |")
    return "\n".join(rows)
