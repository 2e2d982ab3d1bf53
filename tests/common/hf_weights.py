"""Our weights in transformers' networks: the two architectures' oracles."""

from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from common.models.gpt import GPT
from common.models.positions import ROPE_THETA


def qwen3_like(model: GPT) -> Any:
    """Return a Qwen3ForCausalLM with the weights of a ``modern`` model."""
    c = model.config
    qwen3 = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=c.vocab_size,
            hidden_size=c.n_embd,
            intermediate_size=c.inner_size,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.kv_heads,
            head_dim=c.head_size,
            max_position_embeddings=c.block_size,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=c.tied_head,
        )
    )
    ours = model.state_dict()
    theirs = {
        "model.embed_tokens.weight": ours["wte.weight"],
        "model.norm.weight": ours["ln_f.weight"],
        "lm_head.weight": ours["wte.weight" if c.tied_head else "lm_head.weight"],
    }
    sizes = (c.n_embd, c.kv_heads * c.head_size, c.kv_heads * c.head_size)
    for i in range(c.n_layer):
        q, k, v = ours[f"h.{i}.attn.c_attn.weight"].split(sizes)
        layer = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": ours[f"h.{i}.attn.c_proj.weight"],
            "self_attn.q_norm": ours[f"h.{i}.attn.q_norm.weight"],
            "self_attn.k_norm": ours[f"h.{i}.attn.k_norm.weight"],
            "mlp.gate_proj": ours[f"h.{i}.mlp.c_gate.weight"],
            "mlp.up_proj": ours[f"h.{i}.mlp.c_fc.weight"],
            "mlp.down_proj": ours[f"h.{i}.mlp.c_proj.weight"],
            "input_layernorm": ours[f"h.{i}.ln_1.weight"],
            "post_attention_layernorm": ours[f"h.{i}.ln_2.weight"],
        }
        theirs |= {f"model.layers.{i}.{name}.weight": value for name, value in layer.items()}
    qwen3.load_state_dict(theirs, strict=True)
    return qwen3.eval()


def gpt2_like(model: GPT) -> Any:
    """Return a GPT2LMHeadModel with the weights of a ``gpt2`` model."""
    c = model.config
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.block_size,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            activation_function="gelu_new",
        )
    )

    def theirs(name: str, value: Tensor) -> Tensor:
        is_linear = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")
        return value.T if is_linear and name.endswith("weight") else value  # GPT-2's are transposed

    weights = {f"transformer.{name}": theirs(name, v) for name, v in model.state_dict().items()}
    gpt2.load_state_dict(weights | {"lm_head.weight": model.wte.weight}, strict=True)
    return gpt2.eval()
