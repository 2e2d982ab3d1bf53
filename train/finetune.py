"""What fine-tuning takes over from the run it begins from, and what it sets anew."""

from pathlib import Path
from typing import Any

from common import run_dir
from common.dataset import DataFolder, open_data
from common.device import Device
from common.errors import ConfigError, DataError
from common.models.config import ModelConfig
from train.batches.sources import Source, make_source
from train.config import FREE, LENGTHS, TrainConfig
from train.distributed.comm import ProcessGroup
from train.preference import REFERENCE_NAME, reference_for
from train.presets import LORA_HIGHER, LOWER, PRESETS, RATES, TAKEN_OVER, TUNED, WITHOUT
from train.setup.checks import check_sizes, check_vocabulary
from train.setup.regularization import regularization

# Where dropouts and weight decay follow the epochs, fine-tuning takes those of so many, by which
# its rates were chosen: --patience ends what begins to learn by heart.
FEW_EPOCHS = 2.0


def finetune_options(
    command: str, checkpoint: Path, data: DataFolder, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings of a run that begins from a checkpoint: ``options``, or as it was made.

    Raise DataError where ``data`` holds no conversations, or others than ``command`` is for.
    """
    if not data.has_masks:
        raise DataError(
            f"{data.path}: holds text, not conversations. Make them: python -m prepare chats FILE "
            f"--tokenizer {checkpoint.parent} --out {data.path}. Or go on with text: python -m "
            "train pretrain --init-from"
        )
    if data.has_pairs != (command == "preference"):
        kinds = ("preference pairs", "preference") if data.has_pairs else ("no pairs", "finetune")
        raise DataError(
            "{}: holds {}: python -m train {} learns from those.".format(data.path, *kinds)
        )
    before = run_dir.read_json(checkpoint.parent / run_dir.CONFIG_NAME)["train"]
    taken = {name: before[name] for name in TAKEN_OVER & before.keys()}
    taken |= regularization(PRESETS[preset_of(checkpoint)].by_epochs & taken.keys(), FEW_EPOCHS)
    for name in RATES:
        if taken.get(name) is not None:
            taken[name] *= LOWER[command] * (LORA_HIGHER if options.get("lora") else 1)
    defaults = dict(TUNED[command])
    if options.get("lora"):
        taken["optimizer"] = "adamw"
    if set(LENGTHS) & set(options):  # a length given takes the place of the epochs
        del defaults["epochs"]
    return taken | defaults | options


def dropouts(command: str, checkpoint: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the network: ``options``, or what suits this command."""
    names = PRESETS[preset_of(checkpoint)].by_epochs & FREE
    return regularization(names, FEW_EPOCHS) | WITHOUT[command] | options


def preset_of(checkpoint: Path) -> str:
    """Return the preset that the run of a checkpoint was made with; small: it was imported."""
    preset = run_dir.read_json(checkpoint.parent / run_dir.CONFIG_NAME).get("preset")
    return preset if preset in PRESETS else "small"


def location(data: DataFolder) -> dict[str, str]:
    """Return what config.json says of a data set."""
    return {"path": str(data.path.resolve()), "sha256": data.sha256}


def base_data(checkpoint: Path, block_size: int) -> DataFolder:
    """Return the text that the run of a checkpoint was trained on; raise ConfigError without it."""
    before = run_dir.read_json(checkpoint.parent / run_dir.CONFIG_NAME)
    try:
        if "data" not in before:
            raise DataError("It was imported.")
        path = Path(before.get("base_data", before["data"])["path"])
        data = open_data(path)
        check_vocabulary(data, checkpoint, run_dir.read_json(checkpoint / run_dir.STATE_NAME))
        if data.has_masks:
            raise DataError(f"{path}: holds conversations, not text.")
        check_sizes(data, block_size)
    except DataError as error:
        raise ConfigError(
            f"--mix takes text that {checkpoint.parent} was trained on, but that is not to be had. "
            f"{error.message} Or pass --mix 0."
        ) from error
    return data


def source_of(
    folder: Path,
    settings: dict[str, Any],
    data: DataFolder,
    config: TrainConfig,
    shape: ModelConfig,
    device: Device,
    group: ProcessGroup,
) -> Source:
    """Return what the run in ``folder`` learns from, as it was when it began."""
    base = opened_as_before(settings["base_data"]) if "base_data" in settings else None
    kept, sha256 = folder / REFERENCE_NAME, settings.get("reference_sha256")
    reference = reference_for(data, config, shape, kept, device, sha256)
    return make_source(
        data, config, shape.block_size, group, base=base, reference=reference,
        draws=settings["format"] == 1,
    )  # fmt: skip


def opened_as_before(where: dict[str, str]) -> DataFolder:
    """Open the text of a run's --mix; raise DataError where it is not what it was."""
    data = open_data(Path(where["path"]))
    if data.sha256 != where["sha256"]:
        raise DataError(
            f"{data.path}: changed since this run began to learn from it too (--mix). Prepare it "
            "as it was, or train a new run."
        )
    return data
