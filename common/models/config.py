"""The shape of the network, and how ids are chosen from its logits."""

from dataclasses import dataclass
from typing import Any, Literal

from common.errors import ConfigError
from common.settings import SEEDS_END, check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network; stored in every checkpoint."""

    vocab_size: int = setting(256, "Ids in the vocabulary, the special ones included.", at_least=1)
    block_size: int = setting(256, "Context length, in tokens.", at_least=1)
    n_layer: int = setting(6, "Transformer blocks.", at_least=1)
    n_head: int = setting(6, "Attention heads in a block.", at_least=1)
    n_kv_head: int = setting(
        0, "Heads of keys and values, shared among --n-head; 0: as many.", at_least=0
    )
    head_dim: int = setting(0, "Channels of a head; 0: --n-embd over --n-head.", at_least=0)
    n_embd: int = setting(384, "Channels; a multiple of --n-head, but with --head-dim.", at_least=1)
    n_inner: int = setting(
        0,
        "Channels inside the MLP; 0: 4 times --n-embd, or 8/3 rounded up to 64 for swiglu.",
        at_least=0,
    )
    norm: Literal["rmsnorm", "layernorm"] = setting("rmsnorm", "Normalisation.")
    norm_eps: float = setting(
        0.0, "Added under the root of norms; 0: 1e-6, of layernorm 1e-5.", at_least=0, below=1
    )
    norm_first: bool = setting(True, "Normalise before each sublayer; off: after its residual sum.")
    positions: Literal["rope", "learned", "sinusoidal"] = setting(
        "rope", "Rotary, learned, or fixed sines and cosines that are added."
    )
    rope_theta: float = setting(
        10_000.0, "Base of the angles of rotary positions; longer contexts take more.", at_least=1
    )
    mlp: Literal["swiglu", "gelu", "gelu_erf", "relu", "relu2"] = setting(
        "swiglu",
        "Kind of MLP; gelu: by tanh, as GPT-2's; gelu_erf: exact, as nanoGPT's; relu2: the square "
        "of relu.",
    )
    qk_norm: bool = setting(True, "RMS-normalise queries and keys, with weights.")
    bias: bool = setting(False, "Add biases to Linear and LayerNorm, as GPT-2 does.")
    tied_head: bool = setting(True, "Share the embedding's weights with the output head.")
    head_bias: bool = setting(False, "Add a bias to the output head, also to a shared one.")
    ngrams: int = setting(
        0,
        "Embed the last 2, 3 ... up to this many ids together as well, by hashed tables; 0: none.",
        at_least=0,
    )
    ngram_rows: int = setting(1 << 15, "Rows of each of these tables.", at_least=1)
    ngram_min_count: int = setting(
        0, "Rows only for n-grams that the text has so often; 0: for all, shared.", at_least=0
    )
    ngram_dim: int = setting(
        0, "Channels of these rows, which a linear map takes to --n-embd; 0: that many.", at_least=0
    )
    ngram_dropout: float = setting(
        0.0, "Share of tokens in training without their n-grams.", at_least=0.0, below=1.0
    )
    pad_vocab: int = setting(
        1,
        "Round the rows of embedding and head up to a multiple of this, for speed; 64 suits GPUs.",
        at_least=1,
    )
    dropout: float = setting(
        0.0, "Share of activations zeroed in training.", at_least=0.0, below=1.0
    )
    attn_dropout: float | None = setting(
        None, "The same of attention's weights; unset: as --dropout.", at_least=0.0, below=1.0
    )
    attention: Literal["auto", "sdpa", "manual"] = setting(
        "auto", "PyTorch's fused attention, or the same written out; auto: the faster one."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.head_dim and self.n_embd % self.n_head != 0:
            raise ConfigError(
                f"--n-embd is {self.n_embd} and --n-head is {self.n_head}: "
                "the channels must divide evenly among the heads."
            )
        if self.n_head % self.kv_heads != 0:
            raise ConfigError(
                f"--n-head is {self.n_head} and --n-kv-head is {self.n_kv_head}: "
                "the heads must divide evenly among those of keys and values."
            )
        if self.positions == "rope" and self.head_size % 2 != 0:
            raise ConfigError(
                f"--n-embd {self.n_embd} over --n-head {self.n_head}, or --head-dim, gives heads "
                f"of {self.head_size} channels: rotary positions need an even number."
            )
        if self.positions == "sinusoidal" and self.n_embd % 2 != 0:
            raise ConfigError(f"--n-embd is {self.n_embd}: sinusoidal positions need an even one.")

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def eps(self) -> float:
        """What is added under the root of norms."""
        return self.norm_eps or (1e-6 if self.norm == "rmsnorm" else 1e-5)

    @property
    def qk_eps(self) -> float:
        """The same where queries and keys are normalised, always by RMSNorm."""
        return self.norm_eps or 1e-6

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def attention_dropout(self) -> float:
        """Share of attention's weights that is zeroed in training."""
        return self.dropout if self.attn_dropout is None else self.attn_dropout

    @property
    def n_recent(self) -> int:
        """How many of the newest ids are embedded at a position: 1 without n-grams."""
        return max(1, self.ngrams)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head: the vocabulary and what --pad-vocab adds."""
        return -(-self.vocab_size // self.pad_vocab) * self.pad_vocab

    @property
    def inner_size(self) -> int:
        """Channels inside the MLP."""
        if self.n_inner:
            return self.n_inner
        if self.mlp == "swiglu":
            # three matrices of 8/3 C weigh what two of 4 C do; 64: whole vector registers
            return -(-8 * self.n_embd // (3 * 64)) * 64
        return 4 * self.n_embd


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How ids are chosen; what each filter does is in sampling.py."""

    max_new_tokens: int = setting(200, "Stop after this many tokens.", at_least=1)
    temperature: float = setting(
        0.8, "Below 1 bolder, above 1 wilder; 0: always the likeliest.", at_least=0, below=1e30
    )
    top_k: int = setting(0, "Choose among this many likeliest tokens; 0: among all.", at_least=0)
    top_p: float = setting(
        0.95, "Choose among the likeliest tokens that together have this probability.", at_least=0
    )
    min_p: float = setting(
        0.0, "Leave out tokens below this share of the likeliest's probability.", at_least=0,
        below=1.0,
    )  # fmt: skip
    repetition_penalty: float = setting(
        1.0, "Above 1: make tokens that the text already holds less likely.", at_least=0.01,
        below=1e30,
    )  # fmt: skip
    frequency_penalty: float = setting(
        0.0, "Above 0: make a token less likely each time that the new text holds it.",
        at_least=-2, below=1e30,
    )  # fmt: skip
    seed: int = setting(
        1337, "The same seed and prompt give the same text.", at_least=0, below=SEEDS_END
    )

    def __post_init__(self) -> None:
        check_ranges(self)


# The two settings of the switches that other software loads without our code.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Qwen3ForCausalLM
    "modern": {
        "norm": "rmsnorm", "norm_first": True, "positions": "rope", "mlp": "swiglu",
        "qk_norm": True, "bias": False, "head_bias": False, "ngrams": 0,
    },
    # GPT2LMHeadModel
    "gpt2": {
        "norm": "layernorm", "norm_first": True, "positions": "learned", "mlp": "gelu",
        "qk_norm": False, "bias": True, "tied_head": True, "head_bias": False, "ngrams": 0,
    },
}  # fmt: skip
