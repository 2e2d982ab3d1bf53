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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset: for whom or after what it is, and what it sets.

    ``prepare`` makes data that fit, with ``vocab_size`` ids or, of a published vocabulary, a few
    special ones more. Other data train as well; where their ids are characters, ``of_characters``
    wins over ``model``.
    """

    meaning: str
    model: dict[str, Any]
    train: dict[str, Any]
    prepare: str
    vocab_size: int
    of_characters: dict[str, Any] = field(default_factory=dict)

    def model_for(self, kind: str) -> dict[str, Any]:
        """Return the settings of the network for ids of this kind of tokenizer."""
        return self.model | (self.of_characters if kind == "char" else {})


def _shape(n_layer: int, n_head: int, n_embd: int, block_size: int) -> dict[str, Any]:
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}


MODERN, GPT2 = ARCHITECTURES["modern"], ARCHITECTURES["gpt2"]
GPT2_IDS: dict[str, Any] = {"prepare": "--tokenizer gpt2", "vocab_size": 50_257}
CHARACTERS: dict[str, Any] = {"prepare": "--tokenizer char"}  # as many as the text has

# AdamW as PyTorch has it, at one rate: how small systems are often trained
PLAIN_ADAMW = {
    "optimizer": "adamw",
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "grad_clip": 0.0,
}
# Source: nanoGPT's config/train_shakespeare_char.py; 2,000 steps of a smaller one: its README.md
NANOGPT_SHAKESPEARE = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "beta2": 0.99,
    "grad_clip": 1.0,
    "eval_interval": 250,
}


def _after_gpt3(learning_rate: float, tokens_per_step: int = 1 << 19) -> dict[str, Any]:
    """Return how GPT-3's smaller networks were trained: over 300 billion tokens.

    Source: Brown et al. 2020, table 2.1 (rate and tokens of a step for each size) and appendix B
    (arXiv:2005.14165).
    """
    return {
        "optimizer": "adamw",
        "schedule": "cosine",
        "learning_rate": learning_rate,
        "tokens_per_step": tokens_per_step,
        "max_steps": 300_000_000_000 // tokens_per_step,
        "warmup_steps": 375_000_000 // tokens_per_step,
        "weight_decay": 0.1,
        "beta2": 0.95,
        "grad_clip": 1.0,
    }


PRESETS = {
    "tiny": Preset(
        meaning="A CPU, some minutes.",
        # what was tried: tests/bench/RECIPE.md
        model=MODERN
        | _shape(2, 2, 128, 128)
        | {
            "mlp": "relu2",
            "ngrams": 3,
            "ngram_rows": 1 << 15,
            "ngram_dropout": 0.25,  # of two epochs and more: setup/autotune.py
        },
        of_characters={"ngrams": 5},  # they are shorter
        train={
            "minutes": 5.0,
            "tokens_per_step": 1_024,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "matrix_lr": 6e-3,
            "table_lr": 2e-2,
            "schedule": "linear",
            "min_lr": 0.0,
            "warmup_steps": 20,
            "weight_decay": 0.1,
            "grad_clip": 0.0,
            "zero_init": True,
            "log_interval": 100,
        },
        prepare="--tokenizer bpe",
        vocab_size=2_053,
    ),
    "small": Preset(
        meaning="One GPU, half an hour.",
        model=MODERN | _shape(8, 8, 512, 512),
        train={"minutes": 30.0, "tokens_per_step": 65_536, "learning_rate": 1e-3},
        prepare="--tokenizer bpe --vocab-size 8192",
        vocab_size=8_192,
    ),
    "medium": Preset(
        meaning="One large GPU, a night.",
        model=MODERN | _shape(16, 16, 1024, 1024) | {"pad_vocab": 64},
        train={
            "minutes": 480.0,
            "tokens_per_step": 1 << 18,
            "learning_rate": 6e-4,
            "warmup_steps": 500,
        },
        prepare="--tokenizer bpe --vocab-size 32768",
        vocab_size=32_768,
    ),
    "gpt2": Preset(
        meaning="GPT-2 of 124 million, trained as GPT-3 Small.",
        model=GPT2 | _shape(12, 12, 768, 1024),
        train=_after_gpt3(6e-4),
        **GPT2_IDS,
    ),
    "gpt2-medium": Preset(
        meaning="GPT-2 of 355 million, trained as GPT-3 Medium.",
        model=GPT2 | _shape(24, 16, 1024, 1024),
        train=_after_gpt3(3e-4),
        **GPT2_IDS,
    ),
    "gpt2-large": Preset(
        meaning="GPT-2 of 774 million, trained as GPT-3 Large.",
        model=GPT2 | _shape(36, 20, 1280, 1024),
        train=_after_gpt3(2.5e-4),
        **GPT2_IDS,
    ),
    "gpt2-xl": Preset(
        meaning="GPT-2 of 1.6 billion, trained as GPT-3 XL.",
        model=GPT2 | _shape(48, 25, 1600, 1024),
        train=_after_gpt3(2e-4, tokens_per_step=1 << 20),
        **GPT2_IDS,
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
        | {
            "schedule": "cosine",
            "learning_rate": 5e-5,
            "min_lr": 0.0,
            "grad_clip": 1.0,
            "tokens_per_step": 4 * 512,
            "epochs": 50.0,
            "patience": 3,
        },
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
    "toygpt-small": Preset(
        meaning="ToyGPT of 123.70 million: sinusoidal positions, a bias on the shared head.",
        model=GPT2 | _shape(12, 8, 768, 512) | {"positions": "sinusoidal", "head_bias": True},
        train=_after_gpt3(6e-4),
        **GPT2_IDS,
    ),
    "toygpt-medium": Preset(
        meaning="ToyGPT of 253.06 million.",
        model=GPT2 | _shape(16, 8, 1024, 512) | {"positions": "sinusoidal", "head_bias": True},
        train=_after_gpt3(3e-4),
        **GPT2_IDS,
    ),
    "toygpt-large": Preset(
        meaning="ToyGPT of 1,311.58 million.",
        model=GPT2 | _shape(24, 16, 2048, 512) | {"positions": "sinusoidal", "head_bias": True},
        train=_after_gpt3(2e-4, tokens_per_step=1 << 20),
        **GPT2_IDS,
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
        | {
            "learning_rate": 1e-4,
            "grad_clip": 1.0,
            "tokens_per_step": 32 * 128,
            "epochs": 50.0,
        },
        prepare="--tokenizer bpe --vocab-size 8000",
        vocab_size=8_000,
    ),
}

# What --preset auto chooses from, and the settings that it then decides.
AUTO = ("tiny", "small")
DECIDED = {name for auto in AUTO for name in (*PRESETS[auto].model, *PRESETS[auto].train)}


def preset_for(device_type: str) -> str:
    """Return the preset that ``auto`` means on a device."""
    return "tiny" if device_type == "cpu" else "small"
