"""A run -> what samples from it: a verified checkpoint, its weights packed for its device.

With it what is known of it, as JSON for the page, and in words that do not flatter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import checkpoint
from common.chat_format import end_ids
from common.device import choose_device
from common.errors import CheckpointError, ConfigError
from common.inference.backend import Backend, make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig, ModelConfig
from common.run_dir import CONFIG_NAME, STATE_NAME, Pointer, find_run, read_json, read_metrics
from common.tokenizer import Tokenizer
from sample.text.prompt import Template
from sample.weights_file import SUFFIX, read_weights

# Tokens read per parameter where more of either no longer pays more than of the other.
# Source: Hoffmann et al. 2022, section 3, table 3 (arXiv:2203.15556): 1.5 T for 67 B parameters.
TOKENS_PER_PARAMETER = 20
# Share of ln V, the loss of blind guessing, that remains where one knows each token's frequency:
# measured on English documentation, 0.72 for characters and 0.84 for 2,053 byte pairs.
FREQUENCIES_ALONE = 0.8
# Small networks repeat a word for ever, up to 4 % of answers: tests/bench/RECIPE.md
IN_CHATS: dict[str, Any] = {"frequency_penalty": 0.1}


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known of a checkpoint."""

    folder: Path
    step: int
    n_tokens: int  # read in training
    n_parameters: int
    config: ModelConfig
    is_chat: bool = False  # whether it was trained on conversations
    n_base_tokens: int | None = 0  # read before by what its weights began as; None: not known
    val_loss: float | None = None  # nats a token; None where it was not measured
    val_bpb: float | None = None

    @property
    def loss_words(self) -> str:
        """The validation loss in words."""
        if self.val_loss is None:
            return "val loss not measured"
        bpb = f" ({self.val_bpb:.3f} bits/byte)" if self.val_bpb else ""
        return f"val loss {self.val_loss:.4f}{bpb}"


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is ready to sample from."""

    info: RunInfo
    tokenizer: Tokenizer
    backend: Backend

    def decoder(self, n_rows: int = 1) -> Decoder:
        """Return a decoder with ``n_rows`` free rows."""
        ends = end_ids(self.tokenizer) if self.info.is_chat else ()
        return Decoder(self.backend, self.tokenizer, n_rows, ends)


def load_model(
    run: str | None, runs_dir: Path, which: Pointer, device: str, quantize: str
) -> LoadedModel:
    """Return a checkpoint of a run, by default the newest; raise UserError if none verifies.

    ``run`` may also be a file that export --to weights wrote.
    """
    chosen = choose_device(device)
    if quantize == "int8" and chosen.torch_device.type != "cpu":
        raise ConfigError(
            f"--quantize int8 is for CPUs, and the device is {chosen.torch_device}: "
            "pass --device cpu, or leave it out."
        )
    if run is not None and run.endswith(SUFFIX) and Path(run).is_file():
        loaded, known = read_weights(Path(run))
        info = RunInfo(
            folder=Path(run),
            n_parameters=loaded.model.n_parameters,
            config=loaded.model.config,
            is_chat=loaded.chat_template is not None,
            **known,
        )
        loaded.model.to(chosen.torch_device)
    else:
        folder = checkpoint.newest_valid(find_run(runs_dir, run), which, skip_optimizer=True)
        loaded = checkpoint.load_checkpoint(folder, chosen.torch_device, mapped=True)
        info = describe_run(folder, loaded)
    model = loaded.model.eval()
    if chosen.torch_device.type == "cuda":
        model.to(chosen.dtype)  # generating reads every weight once a token: halve that
    return LoadedModel(info, loaded.tokenizer, make_backend(model, int8=quantize == "int8"))


def generate_config(
    info: RunInfo, template: Template, given: Mapping[str, Any], most_tokens: int | None = None
) -> GenerateConfig:
    """Return the settings ``given``, others as suit a chat where the network answers.

    Raise ConfigError where one is out of its range.
    """
    own: dict[str, Any] = {}
    if template.is_chat:
        room = info.config.block_size  # an answer ends by itself
        own = {"max_new_tokens": min(room, most_tokens or room), **IN_CHATS}
    return GenerateConfig(**{**own, **given})


def describe_run(folder: Path, loaded: checkpoint.Checkpoint) -> RunInfo:
    """Return what is known of a checkpoint in ``folder``."""
    step = loaded.state["step"]
    lines = [line for line in read_metrics(folder.parent) if line["step"] == step]
    measured = next((line for line in lines if line.get("val_loss") is not None), {})
    return RunInfo(
        folder=folder,
        step=step,
        n_tokens=loaded.state["progress"]["n_tokens"],
        n_parameters=loaded.model.n_parameters,
        config=loaded.model.config,
        is_chat=loaded.chat_template is not None,
        n_base_tokens=base_tokens(folder.parent),
        val_loss=measured.get("val_loss"),
        val_bpb=measured.get("val_bpb"),
    )


def base_tokens(run: Path) -> int | None:
    """Return the tokens read by the checkpoints that a run began from; None: not known."""
    n_tokens = 0
    try:
        while start := (settings := read_json(run / CONFIG_NAME)).get("init_from"):
            n_tokens += read_json(Path(start) / STATE_NAME)["progress"]["n_tokens"]
            run = Path(start).parent
        return None if "imported_from" in settings else n_tokens
    except (CheckpointError, KeyError):
        return None


def undertrained_warning(info: RunInfo) -> str | None:
    """Return a sentence on a model that was trained too little to be judged, or None."""
    vocab_size = info.config.vocab_size
    blind = math.log(vocab_size)
    if info.val_loss is not None and info.val_loss > FREQUENCIES_ALONE * blind:
        return (
            f"It has hardly begun to learn: guessing blindly among {vocab_size:,} tokens has "
            f"a loss of {blind:.2f}, and knowing no more than how frequent each is about "
            f"{FREQUENCIES_ALONE * blind:.1f}. Expect gibberish."
        )
    ratio = math.inf
    if info.n_base_tokens is not None:
        ratio = (info.n_base_tokens + info.n_tokens) / info.n_parameters
    if ratio >= TOKENS_PER_PARAMETER:
        return None
    return (
        f"It is undertrained: it read {ratio:.1f} tokens for each of its {info.n_parameters:,} "
        f"parameters, where {TOKENS_PER_PARAMETER} are usual. Expect the sound of its text more "
        "than its sense."
    )


def banner(info: RunInfo, template: Template) -> str:
    """Return the lines that open a chat."""
    before = f" after the {info.n_base_tokens:,} of its base model" if info.n_base_tokens else ""
    read = f"{info.n_tokens:,} tokens read{before}"
    lines = [
        f"{info.folder}: step {info.step:,}, {read}, {info.loss_words}.",
        what_it_does(info, template),
        undertrained_warning(info),
    ]
    return "\n".join(line for line in lines if line is not None)


def what_it_does(info: RunInfo, template: Template) -> str:
    """Return a sentence on what becomes of what one types."""
    if template.is_chat:
        return (
            "It was trained on conversations, and answers. What it says sounds like what it read, "
            "and need not be true."
        )
    continues = "it does not answer, it continues the text that you begin."
    if info.is_chat:
        return f"It was trained to answer, but with --template {template.name} {continues}"
    return f"This is a base model: {continues}"


def model_card(info: RunInfo, defaults: GenerateConfig, template: Template) -> dict[str, Any]:
    """Return, as JSON, what the page says of the model and where its settings begin."""
    shape = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    losses = {"val_loss": info.val_loss or math.inf, "val_bpb": info.val_bpb or math.inf}
    return {
        "name": info.folder.stem if info.folder.is_file() else info.folder.parent.name,
        "step": info.step,
        "parameters": info.n_parameters,
        **{name: getattr(info.config, name) for name in shape},
        "tokens_read": info.n_tokens + (info.n_base_tokens or 0),
        # JSON has no word for a diverged loss
        **{name: loss if math.isfinite(loss) else None for name, loss in losses.items()},
        "warning": undertrained_warning(info),
        "defaults": {name: getattr(defaults, name) for name in ("temperature", "top_p", "top_k")}
        | {"max_tokens": defaults.max_new_tokens},
        "chat": info.is_chat,
        "template": template.name,
    }
