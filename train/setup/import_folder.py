"""What others trained -> a run, from whose weights training begins or that talks.

    config.json, model.safetensors or its shards, tokenizer.json  ->  runs/NAME/step-00000000/
    nanoGPT's ckpt.pt, llm.c's .bin (import_file.py)

Nothing in it is executed, and what no switch of ours expresses is refused by its name.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
from safetensors import safe_open
from torch import Tensor

from common import run_dir
from common.chat_format import CHAT_TEMPLATE, TEMPLATE_NAME
from common.checkpoint import SkipInit, save_checkpoint
from common.errors import CheckpointError, ConfigError, UserError
from common.files import unfinished_folder, write_json
from common.huggingface.network import CONFIG_NAME, model_config, weights_of
from common.huggingface.tokenizer_json import TOKENIZER_NAME, read_tokenizer
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.tokenizer import SPECIAL_TOKENS, Tokenizer
from train.config import TrainConfig, TrainPlan, saved_settings
from train.setup.import_file import MASKS, Imported, named_tokenizer, read_file

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# How it goes on if it is resumed: a network that has learned takes a tenth of a new one's rate.
CONFIG = TrainConfig(learning_rate=1e-4)
PLAN = TrainPlan(max_steps=1_000, batch_size=1, eval_interval=100, save_interval=100, compile="off")
SHARDS = "model*.safetensors"  # one file, or several
NEEDED = [CONFIG_NAME, SHARDS, TOKENIZER_NAME, TEMPLATE_NAME]
MOST_PADDING = 128  # rows without an id, for speed


def import_folder(source: str | Path, runs_dir: Path, name: str, tokenizer: str = "") -> Path:
    """Make a run called ``name`` of the network and the vocabulary in ``source``; return it.

    A folder, a file that import_file.py reads, or the name of a repository on Hugging Face's hub.
    Raises CheckpointError, ConfigError or DataError, and makes no run, where one is not to be had.
    """
    run_dir.check_name(name)
    with explained(f"--tokenizer {tokenizer}"):
        given = named_tokenizer(tokenizer) if tokenizer else None
    with explained(str(source)):
        model, found = _read(source, given)
    place = Path(source).resolve() if Path(source).exists() else source
    settings = {
        "format": run_dir.RUN_VERSION, "imported_from": str(place),
        "model": asdict(model.config), "train": saved_settings(CONFIG, PLAN),
    }  # fmt: skip
    state = {
        "progress": {"step": 0, "n_tokens": 0},
        "stepper": {"batch_size": PLAN.batch_size, "loss_scale": 0.0, "n_unscaled": 0},
    }
    ids, template = found.tokenizer, found.chat_template
    with unfinished_folder(runs_dir / name) as run:
        folder = save_checkpoint(run, 0, model, {}, state, ids, chat_template=template)
        run_dir.write_pointer(run, "best", folder)
        write_json(run / run_dir.CONFIG_NAME, settings)
        run = run.rename(run_dir.new_run(runs_dir, name))  # in the place of an empty folder
    log.info("%s: of %s. Talk to it: python -m sample chat %s", run, source, run.name)
    return run


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in a sentence what a damaged or hostile file raises, which may be anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        if "GLOBAL" in reason:  # PyTorch's word for a name in a pickle
            reason = "it would run code when it is loaded, which it was not"
        raise CheckpointError(
            f"{what}: cannot be imported ({reason}). It is damaged, cut short, or of another kind."
        ) from error


def _read(source: str | Path, tokenizer: Tokenizer | None) -> tuple[GPT, Imported]:
    """Return the network there with rows for all ids, as many as it had or more, and its parts."""
    path = Path(source)
    if not path.exists() and HUB_NAME.fullmatch(str(source)):
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(str(source), allow_patterns=NEEDED))
    found = read_file(path, tokenizer) if path.is_file() else _read_folder(path, tokenizer)
    n_ids, n_rows = found.tokenizer.vocab_size, len(found.weights["wte.weight"])
    n_ordinary = n_ids - len(SPECIAL_TOKENS)
    if tokenizer and not n_ordinary <= n_rows < n_ordinary + MOST_PADDING:
        raise ConfigError(
            f"{source}: has rows for {n_rows:,} ids, but --tokenizer {n_ordinary:,}: it is another."
        )
    if n_ids > n_rows:
        log.info("vocabulary  with %d ids more, each as the mean of all", n_ids - n_rows)
        for key in {"wte.weight", "lm_head.weight"} & found.weights.keys():
            rows = found.weights[key]
            found.weights[key] = torch.cat((rows, rows.mean(0, True).expand(n_ids - n_rows, -1)))
    pad = n_rows if n_rows > n_ids else 1  # rows without a token stay, as padding
    with SkipInit():
        model = GPT(replace(found.shape, vocab_size=n_ids, pad_vocab=pad))
    model.load_state_dict(found.weights, assign=True)
    return model, found


def _read_folder(source: Path, tokenizer: Tokenizer | None) -> Imported:
    said = json.loads((source / CONFIG_NAME).read_bytes())
    shape = model_config(said, str(source / CONFIG_NAME))
    end = said.get("eos_token_id")  # one, or a list
    end = end[0] if isinstance(end, list) else end
    with explained(str(source / TOKENIZER_NAME)):
        tokenizer = tokenizer or read_tokenizer(source / TOKENIZER_NAME, end)
    path, template = source / TEMPLATE_NAME, None
    if path.exists() and path.read_text("utf-8", "replace") == CHAT_TEMPLATE:
        template = CHAT_TEMPLATE
    else:
        log.info("It continues texts: no chat format but this program's own is taken over.")
    return Imported(shape, _read_weights(source, shape), tokenizer, template)


def _read_weights(source: Path, shape: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors in float32, made of those there."""
    place: dict[str, tuple[str, str]] = {}  # where each is, under its name in the whole network
    for path in map(str, sorted(source.glob(SHARDS))):
        with safe_open(path, framework="pt") as file:
            place |= {key.removeprefix("transformer."): (path, key) for key in file.offset_keys()}
    with SkipInit():
        ours = GPT(shape).state_dict()
    filled = set()
    for weight in weights_of(shape):
        name = weight.name.removeprefix("transformer.")
        if name not in place:
            raise CheckpointError(f"{source}: lacks {weight.name}.")
        path, key = place.pop(name)
        here = weight.of(ours[weight.source])
        is_known = weight.is_zero or (weight.source, weight.rows) in filled
        filled.add((weight.source, weight.rows))
        with safe_open(path, framework="pt") as file:  # mapped anew, so that none stays in memory
            there: Tensor = file.get_tensor(key)
            if there.shape != here.shape or (is_known and not torch.equal(there.float(), here)):
                same = f", {'0' if weight.is_zero else 'the same as its gate'}" if is_known else ""
                raise ConfigError(
                    f"{source}: {weight.name}, {[*there.shape]}, does not fit its config.json, by "
                    f"which it is {[*here.shape]}{same}."
                )
            here.copy_(there)
    for name in sorted(place):
        if not name.endswith(("lm_head.weight", *MASKS)):
            raise ConfigError(f"{source}: holds {name}, for which Quern's networks have no place.")
    return ours
