"""Our networks as transformers' classes: the settings as config.json, and which tensor is which.

    --architecture modern   Qwen3ForCausalLM        without --qk-norm   LlamaForCausalLM
    --mlp relu2             Qwen3ForCausalLM        without --qk-norm   ArceeForCausalLM
    --architecture gpt2     GPT2LMHeadModel         without --bias: with biases of 0

Qwen3's MLP is down(act(gate x) * up x): with act = relu and the same weights as gate and up it is
the square of relu, bit for bit. --ngrams fits no class of transformers': QuernForCausalLM, which
the exported folder brings along (sample/export/modeling_quern.py), is Qwen3's with the tables.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from common.errors import ConfigError
from common.models.config import ARCHITECTURES, ModelConfig
from common.settings import from_dict

CONFIG_NAME, CODE, CODE_NAME = "config.json", "modeling_quern", "modeling_quern.py"
AUTO_MAP = {"AutoConfig": f"{CODE}.QuernConfig", "AutoModelForCausalLM": f"{CODE}.QuernForCausalLM"}
NAMES = {  # theirs in config.json for ours, by --norm
    "layernorm": {
        "vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer",
        "n_head": "n_head", "n_embd": "n_embd", "n_inner": "n_inner", "activation_function": "mlp",
        "embd_pdrop": "dropout", "attn_pdrop": "attn_dropout", "resid_pdrop": "dropout",
        "layer_norm_epsilon": "norm_eps", "tie_word_embeddings": "tied_head",
    },
    "rmsnorm": {
        "vocab_size": "vocab_size", "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head", "hidden_size": "n_embd", "intermediate_size": "n_inner",
        "hidden_act": "mlp", "attention_dropout": "attn_dropout", "head_dim": "head_dim",
        "rms_norm_eps": "norm_eps", "rope_theta": "rope_theta", "tie_word_embeddings": "tied_head",
    },
}  # fmt: skip
GPT2_LAYER = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
# Theirs for ours
LAYER = {f"self_attn.{part}_proj": "attn.c_attn" for part in "qkv"} | {
    "self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
    "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
}  # fmt: skip
REQUIRED = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd"}
NO_SWITCH = {  # what they have no other of, and transformers takes where nothing is said
    "rope_type": "default", "partial_rotary_factor": 1.0, "attention_bias": False,
    "mlp_bias": False, "use_sliding_window": False, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "quantization_config": None,
}  # fmt: skip
# How settings end which no result depends on, or which are compared by a part of them
NOT_COMPARED = ("quern", "auto_map", "architectures", "rope_parameters", "dropout", "pdrop")
QWEN3 = ARCHITECTURES["modern"]
# Without those that may be any
TABLES = {n: s for n, s in QWEN3.items() if n != "ngrams"}
GPT2 = {n: s for n, s in ARCHITECTURES["gpt2"].items() if n not in ("bias", "tied_head")}
GPT2 |= {"n_kv_head": 0, "head_dim": 0}
RELU2 = {"mlp": "relu2"}
# By model_type and the word for the MLP: the class, and what our switches must be for it
STOCK: dict[tuple[Any, Any], tuple[str, dict[str, Any]]] = {
    ("gpt2", "gelu_new"): ("GPT2LMHeadModel", GPT2),
    ("gpt2", "gelu"): ("GPT2LMHeadModel", GPT2 | {"mlp": "gelu_erf"}),
    ("gpt2", "relu"): ("GPT2LMHeadModel", GPT2 | {"mlp": "relu"}),
    ("qwen3", "silu"): ("Qwen3ForCausalLM", QWEN3),
    ("qwen3", "relu"): ("Qwen3ForCausalLM", QWEN3 | RELU2),
    ("quern", "silu"): ("QuernForCausalLM", TABLES),
    ("quern", "relu"): ("QuernForCausalLM", TABLES | RELU2),
    ("llama", "silu"): ("LlamaForCausalLM", QWEN3 | {"qk_norm": False}),
    ("arcee", "relu2"): ("ArceeForCausalLM", QWEN3 | RELU2 | {"qk_norm": False}),
}


def check_stock(c: ModelConfig) -> tuple[str, str]:
    """Return the model_type of a network and the word for its MLP there.

    Raises ConfigError that names the switches which no class of transformers' has.
    """
    values = asdict(c) | {"n_kv_head": 0 if c.kv_heads == c.n_head else c.kv_heads}
    others = {
        stock: {name: needed for name, needed in switches.items() if values[name] != needed}
        for stock, (_, switches) in STOCK.items()
    }
    nearest = min(others, key=lambda each: len(others[each]))
    if other := others[nearest]:
        said = [f"--{n.replace('_', '-')} is {values[n]}, not {need}" for n, need in other.items()]
        raise ConfigError(
            f"{', '.join(said)}: no network of transformers is like that, of which the nearest is "
            f"{STOCK[nearest][0]}. --to weights keeps any network, for Quern."
        )
    return nearest


def config_json(c: ModelConfig) -> dict[str, Any]:
    """Return config.json for a network that check_stock lets pass, without its ids and dtype.

    ``quern`` in it holds our settings, by which an import finds what theirs have no word for.
    """
    kind, word = check_stock(c)
    values = asdict(c) | {"n_inner": c.inner_size, "n_kv_head": c.kv_heads, "mlp": word}
    values |= {"head_dim": c.head_size, "norm_eps": c.eps, "attn_dropout": c.attention_dropout}
    settings: dict[str, Any] = {theirs: values[ours] for theirs, ours in NAMES[c.norm].items()}
    settings |= {"model_type": kind, "architectures": [STOCK[kind, word][0]], "quern": asdict(c)}
    if kind == "quern":
        settings |= {"auto_map": AUTO_MAP} | {n: s for n, s in values.items() if "ngram" in n}
    if kind != "gpt2":
        # as transformers 5 reads it; rope_theta beside it, as transformers 4 and llama.cpp do
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": c.rope_theta}
    return settings


def model_config(said: dict[str, Any], where: str) -> ModelConfig:
    """Return the shape of the network that a config.json describes, the reverse of config_json.

    Raises ConfigError that names the first setting which is none of our networks', and KeyError of
    one that it does not say.
    """
    kind = said.get("model_type")
    word = said.get("hidden_act", said.get("activation_function"))
    word = word or next((theirs for each, theirs in STOCK if each == kind), None)  # their default
    if (kind, word) not in STOCK:
        raise ConfigError(
            f"{where}: is of a {kind} with {word}. Imported are gpt2, qwen3, llama and arcee with "
            "their own activations, and what python -m sample export wrote."
        )
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    found = said | rope | {"rope_type": rope.get("rope_type", rope.get("type"))}
    found = {name: value for name, value in found.items() if value is not None}
    if "quern" in said:
        config = replace(from_dict(ModelConfig, said["quern"], where), pad_vocab=1)
    else:
        _, switches = STOCK[kind, word]
        # what is so there unless it is said
        unsaid: dict[str, Any] = {"bias": True, "tied_head": kind == "gpt2"}
        unsaid["norm_eps"] = 1e-5 if kind == "arcee" else 0.0
        names = NAMES[switches["norm"]]
        values = {ours: found[n] for n, ours in names.items() if n in found or ours in REQUIRED}
        config = ModelConfig(**unsaid | values | switches)
        if config.attn_dropout == config.dropout:  # so that --dropout is that of both again
            config = replace(config, attn_dropout=None)
    for name, value in (config_json(config) | NO_SWITCH).items():
        if not name.endswith(NOT_COMPARED) and found.get(name, value) != value:
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

    def of(self, source: Tensor) -> Tensor:
        """Return the tensor there, a view of ours."""
        found = source[slice(*self.rows)]
        if self.is_zero:
            return found.new_zeros(len(found))
        return found.T if self.is_transposed else found


def weights_of(c: ModelConfig) -> list[Weight]:
    """Return every tensor there of a network that check_stock lets pass."""
    is_gpt2 = c.norm == "layernorm"
    names = {} if c.tied_head else {"lm_head": "lm_head"}
    if is_gpt2:
        names |= {f"transformer.{name}": name for name in ("wte", "wpe", "ln_f")}
        layers, layer = "transformer.h", dict(zip(GPT2_LAYER, GPT2_LAYER, strict=True))
    else:
        names |= {"model.embed_tokens": "wte", "model.norm": "ln_f"}
        names |= {f"ngrams.{i}": f"wge.{i}" for i in range(c.ngrams - 1)}
        names |= {"ngram_map": "wgp"} if c.ngram_dim and c.ngrams > 1 else {}
        layers, layer = "model.layers", dict(LAYER)
        if c.qk_norm:
            layer |= {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
        if c.mlp == "swiglu" or c.qk_norm:  # ArceeForCausalLM has no gate
            layer["mlp.gate_proj"] = "mlp.c_gate" if c.mlp == "swiglu" else "mlp.c_fc"
    for i in range(c.n_layer):
        names |= {f"{layers}.{i}.{there}": f"h.{i}.{here}" for there, here in layer.items()}
    q_end, k_end = c.n_head * c.head_size, (c.n_head + c.kv_heads) * c.head_size
    cut: dict[str, Any] = {"q_proj": (0, q_end), "k_proj": (q_end, k_end), "v_proj": (k_end, None)}
    # without the rows that --pad-vocab adds
    cut |= dict.fromkeys(("wte", "embed_tokens", "lm_head"), (0, c.vocab_size))
    found = []
    for there, here in names.items():
        part = there.rpartition(".")[2]
        rows, is_linear = cut.get(part, (0, None)), is_gpt2 and part.startswith("c_")
        found.append(Weight(f"{there}.weight", f"{here}.weight", rows, is_linear))
        if is_linear or part.startswith("ln_"):
            source = f"{here}.{'bias' if c.bias else 'weight'}"
            found.append(Weight(f"{there}.bias", source, is_zero=not c.bias))
    if c.ngram_min_count:
        found += [Weight(f"ngrams.{i}.tags", f"wge.{i}.tags") for i in range(c.ngrams - 1)]
    return found
