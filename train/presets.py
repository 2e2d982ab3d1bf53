"""Named settings: what a preset changes in ModelConfig and TrainConfig.

A setting given on the command line wins over the preset, the preset over the declared default.

Presets that carry another system's name hold what it publishes of shape, optimizer and schedule,
with these differences. Attention written as separate heads and a projection of their results is one
c_attn here, the heads' weights side by side: the same function. GELU has the tanh form, at most
0.0005 from the other. Biases and final norms are those of the whole network or none: a system that
leaves some out has them here.
"""

from dataclasses import dataclass, field
from typing import Any

from common.models.config import ARCHITECTURES
from train.config import FREE_UNLESS_LEARNED, LENGTHS, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset: for whom or after what it is, and what it sets.

    ``prepare`` makes data that fit, with ``vocab_size`` ids or, of a published vocabulary, a few
    special ones more. Other data train as well; where their ids are characters, ``of_characters``
    wins over ``model``. Tables of n-grams have ``ngram_rows`` at most, in proportion to the text.
    Settings in ``by_epochs`` follow the run's (setup/regularization.py).
    """

    meaning: str
    model: dict[str, Any]
    train: dict[str, Any]
    prepare: str
    vocab_size: int
    of_characters: dict[str, Any] = field(default_factory=dict)
    by_epochs: frozenset[str] = frozenset()

    def model_for(self, kind: str, n_tokens: int) -> dict[str, Any]:
        """Return the settings of the network for so many tokens of this kind of tokenizer."""
        model = self.model | (self.of_characters if kind == "char" else {})
        if "ngram_rows" in model:  # a power of two: one for four to eight tokens
            rows = 1 << max(LEAST_ROWS_BITS, (n_tokens // TOKENS_A_ROW).bit_length())
            model["ngram_rows"] = min(model["ngram_rows"], rows)
        return model

    def train_config(self, options: dict[str, Any]) -> TrainConfig:
        """Return its settings with ``options`` in their place."""
        settings = self.train
        if set(LENGTHS) & set(options):  # a length given takes the place of the preset's own
            settings = {name: value for name, value in settings.items() if name not in LENGTHS}
        return TrainConfig(**settings | options)


TOKENS_A_ROW, LEAST_ROWS_BITS = 8, 10


def _shape(n_layer: int, n_head: int, n_embd: int, block_size: int) -> dict[str, Any]:
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}


MODERN, GPT2 = ARCHITECTURES["modern"], ARCHITECTURES["gpt2"]
TOYGPT = GPT2 | {"positions": "sinusoidal", "head_bias": True}
GPT2_IDS: dict[str, Any] = {"prepare": "--tokenizer gpt2", "vocab_size": 50_257}
CHARACTERS: dict[str, Any] = {"prepare": "--tokenizer char"}  # as many as the text has

# What was tried: tests/bench/RECIPE.md
TINY = {
    "optimizer": "muon", "grad_clip": 0.0, "zero_init": True,
    "learning_rate": 1e-2, "matrix_lr": 6e-3,
    "schedule": "linear", "min_lr": 0.0, "warmup_steps": 20,
    "minutes": 5.0, "tokens_per_step": 2_048, "batch_size": 16, "log_interval": 100,
}  # fmt: skip
# At the rates of AdamW (train/optim/muon.py). small's in few steps on a CPU: tests/bench/RECIPE.md
FOR_GPUS = {"optimizer": "muon", "zero_init": True}
# AdamW as PyTorch has it, at one rate: how small systems are often trained
PLAIN_ADAMW = {
    "optimizer": "adamw", "weight_decay": 0.01, "beta2": 0.999, "grad_clip": 0.0,
    "schedule": "constant", "warmup_steps": 0,
}  # fmt: skip
# Source: nanoGPT's config/train_shakespeare_char.py; 2,000 steps of a smaller one: its README.md
NANOGPT_SHAKESPEARE = {
    "optimizer": "adamw", "weight_decay": 0.1, "beta2": 0.99, "grad_clip": 1.0,
    "schedule": "cosine", "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_steps": 100,
    "eval_interval": 250,
}  # fmt: skip


def _as_gpt3(
    meaning: str, model: dict[str, Any], learning_rate: float, tokens_per_step: int = 1 << 19
) -> Preset:
    """Return a network of GPT-2's ids, trained as GPT-3's smaller ones: over 300 billion tokens.

    Source: Brown et al. 2020, table 2.1 (rate and tokens of a step for each size) and appendix B
    (arXiv:2005.14165).
    """
    train = {
        "optimizer": "adamw", "weight_decay": 0.1, "beta2": 0.95, "grad_clip": 1.0,
        "schedule": "cosine", "learning_rate": learning_rate,
        "warmup_steps": 375_000_000 // tokens_per_step,
        "tokens_per_step": tokens_per_step, "max_steps": 300_000_000_000 // tokens_per_step,
    }  # fmt: skip
    return Preset(meaning=meaning, model=model, train=train, **GPT2_IDS)


PRESETS = {
    "tiny": Preset(
        meaning="A CPU, some minutes.",
        model=MODERN
        | _shape(2, 2, 128, 128)
        | {"tied_head": False, "mlp": "relu2", "attn_dropout": 0.0}
        | {"ngrams": 5, "ngram_rows": 1 << 19, "ngram_dim": 32, "ngram_min_count": 2},
        # few pairs, triples ... of characters are met only once; and 128 are some twenty words
        of_characters={"block_size": 256, "ngram_rows": 1 << 15, "ngram_dim": 0}
        | {"ngram_min_count": 0},
        train=TINY | {"table_lr": 2e-2},
        prepare="--tokenizer bpe",
        vocab_size=2_053,
        by_epochs=frozenset({"dropout", "ngram_dropout", "weight_decay"}),
    ),
    "tiny-portable": Preset(
        meaning="tiny for llama.cpp and others: without tables of n-grams, with more ids instead.",
        model=MODERN | _shape(2, 2, 128, 128) | {"tied_head": False, "attn_dropout": 0.0},
        train=TINY,
        prepare="--tokenizer bpe --vocab-size 8192",
        vocab_size=8_197,
        by_epochs=frozenset({"dropout", "weight_decay"}),
    ),
    "small": Preset(
        meaning="One GPU, half an hour.",
        model=MODERN | _shape(8, 8, 512, 512),
        train=FOR_GPUS | {"minutes": 30.0, "tokens_per_step": 65_536, "learning_rate": 1e-3},
        prepare="--tokenizer bpe --vocab-size 8192",
        vocab_size=8_192,
    ),
    "medium": Preset(
        meaning="One large GPU, a night.",
        model=MODERN | _shape(16, 16, 1024, 1024) | {"pad_vocab": 64},
        train=FOR_GPUS
        | {"minutes": 480.0, "tokens_per_step": 1 << 18, "learning_rate": 6e-4}
        | {"warmup_steps": 500},
        prepare="--tokenizer bpe --vocab-size 32768",
        vocab_size=32_768,
    ),
    "gpt2": _as_gpt3(
        "GPT-2 of 124 million, trained as GPT-3 Small.", GPT2 | _shape(12, 12, 768, 1024), 6e-4
    ),
    "gpt2-medium": _as_gpt3(
        "GPT-2 of 355 million, trained as GPT-3 Medium.", GPT2 | _shape(24, 16, 1024, 1024), 3e-4
    ),
    "gpt2-large": _as_gpt3(
        "GPT-2 of 774 million, trained as GPT-3 Large.", GPT2 | _shape(36, 20, 1280, 1024), 2.5e-4
    ),
    "gpt2-xl": _as_gpt3(
        "GPT-2 of 1.6 billion, trained as GPT-3 XL.",
        GPT2 | _shape(48, 25, 1600, 1024),
        2e-4,
        tokens_per_step=1 << 20,
    ),
    "nanogpt-shakespeare": Preset(
        meaning="nanoGPT's recipe for Shakespeare's characters on a GPU.",
        model=GPT2 | _shape(6, 6, 384, 256) | {"bias": False, "dropout": 0.2},
        train=NANOGPT_SHAKESPEARE | {"tokens_per_step": 64 * 256, "max_steps": 5_000},
        **CHARACTERS,
        vocab_size=65,
    ),
    "nanogpt-shakespeare-cpu": Preset(
        meaning="nanoGPT's recipe for Shakespeare's characters on a CPU.",
        model=GPT2 | _shape(4, 4, 128, 64) | {"bias": False},
        train=NANOGPT_SHAKESPEARE | {"tokens_per_step": 12 * 64, "max_steps": 2_000},
        **CHARACTERS,
        vocab_size=65,
    ),
    "mytalkgpt": Preset(
        meaning="MyTalkGPT: GPT-2's vocabulary and a small network. Ends when val stops falling.",
        model=GPT2 | _shape(6, 6, 384, 512) | {"dropout": 0.1},
        train=PLAIN_ADAMW
        | {"schedule": "cosine", "learning_rate": 5e-5, "min_lr": 0.0, "grad_clip": 1.0}
        | {"tokens_per_step": 4 * 512, "epochs": 50.0, "patience": 3},
        **GPT2_IDS,
    ),
    "custom-llm": Preset(
        meaning="Custom-Large-Language-Model: one post-norm block of one head.",
        model=GPT2
        | _shape(1, 1, 384, 128)
        | {"norm_first": False, "mlp": "relu", "dropout": 0.2}
        | {"tied_head": False, "head_bias": True},
        train=PLAIN_ADAMW | {"learning_rate": 3e-4, "tokens_per_step": 32 * 128, "max_steps": 200},
        **CHARACTERS,
        vocab_size=100,
    ),
    "toygpt-small": _as_gpt3(
        "ToyGPT of 123.70 million: sinusoidal positions, a bias on the shared head.",
        TOYGPT | _shape(12, 8, 768, 512),
        6e-4,
    ),
    "toygpt-medium": _as_gpt3("ToyGPT of 253.06 million.", TOYGPT | _shape(16, 8, 1024, 512), 3e-4),
    "toygpt-large": _as_gpt3(
        "ToyGPT of 1,311.58 million.",
        TOYGPT | _shape(24, 16, 2048, 512),
        2e-4,
        tokens_per_step=1 << 20,
    ),
    "gpt-40k": Preset(
        meaning="GPT-40k: the characters of some novels.",
        model=GPT2
        | _shape(4, 3, 192, 256)
        | {"mlp": "relu", "dropout": 0.2, "tied_head": False, "head_bias": True},
        train=PLAIN_ADAMW
        | {"learning_rate": 3e-4, "tokens_per_step": 128 * 256, "max_steps": 10_000},
        **CHARACTERS,
        vocab_size=94,
    ),
    "hellogpt": Preset(
        meaning="HelloGPT: a small network with a vocabulary of its own.",
        model=GPT2 | _shape(4, 4, 256, 128) | {"dropout": 0.1, "tied_head": False},
        train=PLAIN_ADAMW
        | {"learning_rate": 1e-4, "grad_clip": 1.0, "tokens_per_step": 32 * 128, "epochs": 50.0},
        prepare="--tokenizer bpe --vocab-size 8000",
        vocab_size=8_000,
    ),
}

# What --preset auto chooses from (setup/auto.py), and the settings that it then decides.
AUTO = ("tiny", "tiny-portable", "small")
_AUTO = [PRESETS[name] for name in AUTO]
DECIDED = {name for each in _AUTO for name in (*each.model, *each.train, *each.by_epochs)}

# What fine-tuning takes over from the run it begins with: by what it learned, but for what hangs on
# its length, its data or its machine. Rates are lower, by this factor for each command. What was
# tried: tests/bench/RECIPE.md
TAKEN_OVER = {
    "tokens_per_step", "optimizer", "learning_rate", "matrix_lr", "table_lr", "momentum",
    "weight_decay", "beta1", "beta2", "grad_clip", "log_interval", "activation_checkpointing",
    "dtype",
}  # fmt: skip
RATES = ("learning_rate", "matrix_lr", "table_lr")
LOWER = {"finetune": 0.5, "preference": 0.1}
LORA_HIGHER = 2  # times that of all weights: of 0.3, 1 and 3 of the run's 1 was the best for rank 8
FINETUNE: dict[str, Any] = {
    "epochs": 3.0, "patience": 3, "schedule": "linear", "min_lr": 0.0, "warmup_steps": 20,
    "eval_interval": 0,
}  # fmt: skip
# The margin grows without end, at last at the cost of what the answers say: hence one epoch. And
# dropout would be on one side only of the comparison.
TUNED = {"finetune": FINETUNE, "preference": FINETUNE | {"epochs": 1.0}}
WITHOUT: dict[str, dict[str, Any]] = {
    "finetune": {},
    "preference": dict.fromkeys(("dropout", "attn_dropout", "ngram_dropout"), 0.0),
}  # fmt: skip
THE_RUNS = "the run's, of tiny as for 2 epochs"
SHOWN = {
    command: dict.fromkeys(TAKEN_OVER, "the run's")
    | {"weight_decay": THE_RUNS}
    | dict.fromkeys(RATES, f"{lower:g} of the run's")
    | {name: str(value) for name, value in TUNED[command].items()}
    for command, lower in LOWER.items()
}
SHOWN_OF_MODEL = {
    command: dict.fromkeys(FREE_UNLESS_LEARNED, "the run's")
    | dict.fromkeys(("dropout", "ngram_dropout"), THE_RUNS)
    | dict.fromkeys(without, "0")
    for command, without in WITHOUT.items()
}
