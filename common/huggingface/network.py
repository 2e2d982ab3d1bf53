"""Our networks as transformers' classes: the settings as config.json, and which tensor is which.

    --architecture modern   Qwen3ForCausalLM        without --qk-norm   LlamaForCausalLM
    --mlp relu2             Qwen3ForCausalLM        without --qk-norm   ArceeForCausalLM
    --architecture gpt2     GPT2LMHeadModel         without --bias: with biases of 0

Qwen3's MLP is down(act(gate x) * up x): with act = relu and the same weights as gate and up it is
the square of relu, bit for bit. --ngrams fits no class of transformers': QuernForCausalLM, which
the exported folder brings along (sample/export/modeling_quern.py), is Qwen3's with the tables.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.models.config import ARCHITECTURES, ModelConfig
from common.settings import from_dict

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME, INDEX_NAME = "config.json", "model.safetensors.index.json"
CODE_NAME = "modeling_quern.py"
# What each switch must be, by --norm
STOCK: dict[str, dict[str, tuple[Any, ...]]] = {
    "rmsnorm": {
        "norm_first": (True,), "positions": ("rope",), "mlp": ("swiglu", "relu2"),
        "bias": (False,), "head_bias": (False,),
    },
    "layernorm": {
        "norm_first": (True,), "positions": ("learned",), "mlp": ("gelu", "gelu_erf", "relu"),
        "qk_norm": (False,), "head_bias": (False,), "ngrams": (0,), "head_dim": (0,),
    },
}  # fmt: skip
SIZES = {  # their words for ours, by --norm
    "rmsnorm": {
        "vocab_size": "vocab_size", "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head", "hidden_size": "n_embd", "intermediate_size": "n_inner",
        "attention_dropout": "dropout", "head_dim": "head_dim", "rms_norm_eps": "norm_eps",
        "rope_theta": "rope_theta",
    },
    "layernorm": {
        "vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer",
        "n_head": "n_head", "n_embd": "n_embd", "n_inner": "n_inner", "resid_pdrop": "dropout",
        "layer_norm_epsilon": "norm_eps",
    },
}  # fmt: skip
# What is not said has transformers' own default, where it is none of ours.
OPTIONAL = {
    "n_kv_head": 0, "n_inner": 0, "dropout": 0.0, "head_dim": 0, "norm_eps": 0.0,
    "rope_theta": 10_000.0,
}  # fmt: skip
ACTIVATIONS = {
    "swiglu": "silu", "relu2": "relu", "gelu": "gelu_new", "gelu_erf": "gelu", "relu": "relu"
}  # fmt: skip
NO_SWITCH = {
    "rope_type": "default", "partial_rotary_factor": 1.0, "mlp_bias": False,
    "use_sliding_window": False,
}  # fmt: skip
NOT_COMPARED = {  # what no result depends on, or is compared by a part of it
    "quern", "auto_map", "architectures", "rope_parameters", "attention_dropout", "resid_pdrop",
    "embd_pdrop", "attn_pdrop",
}  # fmt: skip


def check_stock(c: ModelConfig) -> None:
    """Raise ConfigError that names the switches which no class of transformers' has."""
    wrong = {
        name: may_be for name, may_be in STOCK[c.norm].items() if getattr(c, name) not in may_be
    }
    if c.norm == "layernorm" and c.kv_heads != c.n_head:
        wrong["n_kv_head"] = (c.n_head,)
    if c.norm == "rmsnorm" and c.ngrams and not c.qk_norm:
        wrong["qk_norm"] = (True,)
    if wrong:
        found = ", ".join(f"{_flag(name)} is {getattr(c, name)}" for name in wrong)
        needed = ", ".join(f"{_flag(n)} {' or '.join(map(str, v))}" for n, v in wrong.items())
        raise ConfigError(
            f"{found}: no network of transformers is like that. Beside --norm {c.norm} it takes "
            f"{needed}. --to weights keeps any network, for Quern."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def config_json(c: ModelConfig) -> dict[str, Any]:
    """Return config.json for a network that check_stock lets pass, without its ids and dtype.

    ``quern`` in it holds our settings, by which an import finds what theirs have no word for.
    """
    values = asdict(c) | {"n_inner": c.inner_size, "n_kv_head": c.kv_heads}
    values |= {"head_dim": c.head_size, "norm_eps": c.eps}
    settings: dict[str, Any] = {theirs: values[ours] for theirs, ours in SIZES[c.norm].items()}
    settings |= {"tie_word_embeddings": c.tied_head, "quern": asdict(c)}
    if c.norm == "layernorm":
        return settings | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "activation_function": ACTIVATIONS[c.mlp], "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "embd_pdrop": c.dropout, "attn_pdrop": c.dropout,
        }  # fmt: skip
    kind, name = ("qwen3", "Qwen3ForCausalLM") if c.qk_norm else ("llama", "LlamaForCausalLM")
    activation = ACTIVATIONS[c.mlp]
    if c.mlp == "relu2" and not c.qk_norm:
        kind, name, activation = "arcee", "ArceeForCausalLM", "relu2"
    if c.ngrams:
        kind, name = "quern", "QuernForCausalLM"
        code = CODE_NAME.removesuffix(".py")
        classes = {"AutoConfig": "QuernConfig", "AutoModelForCausalLM": name}
        settings["auto_map"] = {auto: f"{code}.{each}" for auto, each in classes.items()}
        settings |= {"ngrams": c.ngrams, "ngram_rows": c.ngram_rows}
    return settings | {
        "model_type": kind, "architectures": [name], "hidden_act": activation,
        "attention_bias": False,
        # as transformers 5 reads it; rope_theta beside it, as transformers 4 and llama.cpp do
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
    }  # fmt: skip


def model_config(said: dict[str, Any], where: str) -> ModelConfig:
    """Return the shape of the network that a config.json describes, the reverse of config_json.

    Raises ConfigError that names the first setting which is none of our networks'.
    """
    kind = said.get("model_type")
    if kind not in ("gpt2", "qwen3", "llama", "arcee", "quern"):
        raise ConfigError(
            f"{where}: is of a {kind}. Imported are gpt2, qwen3, llama and arcee, and what "
            "python -m sample export wrote."
        )
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    found = said | rope | {"rope_type": rope.get("rope_type", rope.get("type"))}
    if "quern" in said:
        config = replace(from_dict(ModelConfig, said["quern"], where), pad_vocab=1)
    else:
        is_gpt2 = kind == "gpt2"
        switches = ARCHITECTURES["gpt2" if is_gpt2 else "modern"]
        names = SIZES[str(switches["norm"])]
        if lacking := [n for n, ours in names.items() if n not in found and ours not in OPTIONAL]:
            raise ConfigError(f"{where}: says nothing of {', '.join(lacking)}.")
        sizes = {ours: found.get(theirs) or OPTIONAL.get(ours) for theirs, ours in names.items()}
        sizes["tied_head"] = said.get("tie_word_embeddings", is_gpt2)
        activation = said.get("activation_function" if is_gpt2 else "hidden_act")
        known = {"silu": "swiglu", "relu": "relu" if is_gpt2 else "relu2", "relu2": "relu2"}
        known |= {"gelu": "gelu_erf"} if is_gpt2 else {}
        sizes["mlp"] = known.get(str(activation), "gelu" if is_gpt2 else "swiglu")
        config = ModelConfig(**switches | sizes | {"qk_norm": kind == "qwen3"})
    for name, value in (config_json(config) | NO_SWITCH).items():
        if name not in NOT_COMPARED and found.get(name) not in (None, value):
            raise ConfigError(
                f"{where}: {name} is {found[name]}, but of Quern's networks with its other "
                f"settings it is {value}: this one would compute something else."
            )
    return config


@dataclass(frozen=True)
class Weight:
    """One tensor there: rows of one of ours."""

    name: str  # there
    source: str  # here
    rows: tuple[int, int | None] = (0, None)  # of the source, from and to
    is_transposed: bool = False  # (in, out), as GPT-2's linear maps are
    is_zero: bool = False  # a bias that is none here: as long as the source has rows

    def of(self, source: "Tensor") -> "Tensor":
        """Return the tensor there, a view of ours."""
        found = source[slice(*self.rows)]
        if self.is_zero:
            return found.new_zeros(len(found))
        return found.T if self.is_transposed else found


def weights_of(c: ModelConfig) -> list[Weight]:
    """Return every tensor there of a network that check_stock lets pass."""
    vocabulary = (0, c.vocab_size)  # without the rows that --pad-vocab adds
    head = [] if c.tied_head else [Weight("lm_head.weight", "lm_head.weight", vocabulary)]
    if c.norm == "layernorm":
        names = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
        layers = [f"h.{i}.{name}" for i in range(c.n_layer) for name in names]
        found = [
            Weight("transformer.wte.weight", "wte.weight", vocabulary),
            Weight("transformer.wpe.weight", "wpe.weight"),
        ]
        for name in [*layers, "ln_f"]:
            bias = f"{name}.{'bias' if c.bias else 'weight'}"
            found += [
                Weight(f"transformer.{name}.weight", f"{name}.weight", is_transposed="c_" in name),
                Weight(f"transformer.{name}.bias", bias, is_zero=not c.bias),
            ]
        return found + head
    found = [
        Weight("model.embed_tokens.weight", "wte.weight", vocabulary),
        Weight("model.norm.weight", "ln_f.weight"),
    ]
    found += [Weight(f"ngrams.{i}.weight", f"wge.{i}.weight") for i in range(c.ngrams - 1)]
    q_end, k_end = c.n_head * c.head_size, (c.n_head + c.kv_heads) * c.head_size
    within = [
        ("self_attn.q_proj", "attn.c_attn", (0, q_end)),
        ("self_attn.k_proj", "attn.c_attn", (q_end, k_end)),
        ("self_attn.v_proj", "attn.c_attn", (k_end, None)),
        ("self_attn.o_proj", "attn.c_proj", (0, None)),
        ("mlp.up_proj", "mlp.c_fc", (0, None)),
        ("mlp.down_proj", "mlp.c_proj", (0, None)),
        ("input_layernorm", "ln_1", (0, None)),
        ("post_attention_layernorm", "ln_2", (0, None)),
    ]
    if c.qk_norm:
        within += [(f"self_attn.{n}", f"attn.{n}", (0, None)) for n in ("q_norm", "k_norm")]
    if c.mlp == "swiglu" or c.qk_norm:  # ArceeForCausalLM has no gate
        within.append(
            ("mlp.gate_proj", f"mlp.c_{'gate' if c.mlp == 'swiglu' else 'fc'}", (0, None))
        )
    return (
        head
        + found
        + [
            Weight(f"model.layers.{i}.{name}.weight", f"h.{i}.{ours}.weight", rows)
            for i in range(c.n_layer)
            for name, ours, rows in within
        ]
    )
