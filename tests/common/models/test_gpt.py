"""The network against transformers' networks and against the laws it must obey."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from tests.common.hf_weights import transformers_like
from tests.tiny import random_model

SIZES: dict[str, Any] = {
    "vocab_size": 61, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 32,
}  # fmt: skip
MODERN = ARCHITECTURES["modern"]
GPT2 = ARCHITECTURES["gpt2"]
# The default, then each switch moved, then GPT-2, and the whole of it with the other attention.
SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm": "layernorm"},
    {"norm": "layernorm", "bias": True},
    {"norm_first": False},
    {"positions": "learned"},
    {"positions": "sinusoidal"},
    {"mlp": "gelu"},
    {"mlp": "relu"},
    {"mlp": "relu2"},
    {"ngrams": 3, "ngram_rows": 40},
    {"ngrams": 3, "ngram_rows": 40, "ngram_dim": 7, "ngram_min_count": 2},
    {"qk_norm": False},
    {"bias": True},
    {"tied_head": False},
    {"head_bias": True},
    {"pad_vocab": 16},
    {"pad_vocab": 16, "tied_head": False, "head_bias": True},
    {"n_kv_head": 2},
    {"n_kv_head": 1},
    {"n_inner": 24},
    {"attention": "manual"},
    {"attention": "manual", "n_kv_head": 2},
    GPT2,
    GPT2 | {"norm_first": False, "attention": "manual"},
]


# every token, or none, keeps its n-grams, and kept ones are larger by as much as is dropped
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_n_grams_of_a_share_of_tokens_are_dropped_in_training(share: float) -> None:
    config = ModelConfig(
        vocab_size=50, block_size=500, n_layer=1, n_head=1, n_embd=8, ngrams=2, ngram_rows=20,
        ngram_dropout=share,
    )  # fmt: skip
    model = random_model(config)
    idx = torch.randint(50, (2, 500))
    torch.manual_seed(0)
    tables = model.embed(idx) - model.wte(idx)  # (B, T, C)
    dropped = model.train().embed(idx) - model.wte(idx)
    lost = (dropped == 0).all(dim=-1)
    assert float(lost.float().mean()) == pytest.approx(share, abs=0.06)
    torch.testing.assert_close(dropped[~lost], tables[~lost] / (1 - share), atol=1e-5, rtol=1e-4)


switches = pytest.mark.parametrize("changed", SWITCHES, ids=str)


def some_ids(config: ModelConfig, n_rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (n_rows, config.block_size)
    return torch.randint(config.vocab_size, shape, generator=generator)


def logits_of(model: GPT, idx: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(idx)
    return logits


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("n_kv_head", [0, 1, 2])
def test_modern_gives_the_logits_of_qwen3(n_kv_head: int, tied_head: bool) -> None:
    config = ModelConfig(**SIZES, **MODERN, n_kv_head=n_kv_head, tied_head=tied_head)
    model = random_model(config)
    idx = some_ids(config)
    with torch.inference_mode():
        theirs = transformers_like(model)(idx).logits
    ours = logits_of(model, idx)
    assert ours.std() > 0.5  # nothing is near zero by itself
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_default_switches_are_modern() -> None:
    assert ModelConfig(**SIZES) == ModelConfig(**SIZES, **MODERN)


def test_gpt2_gives_the_logits_of_gpt2() -> None:
    model = random_model(ModelConfig(**SIZES, **GPT2))
    idx = some_ids(model.config)
    with torch.inference_mode():
        theirs = transformers_like(model)(idx).logits
    ours = logits_of(model, idx)
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@switches
def test_future_tokens_do_not_change_earlier_logits(changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**SIZES | changed))
    idx = some_ids(model.config)
    before = logits_of(model, idx)
    for position in (1, 6, 11):
        other = idx.clone()
        other[:, position:] = (other[:, position:] + 7) % model.config.vocab_size
        after = logits_of(model, other)
        torch.testing.assert_close(before[:, :position], after[:, :position], atol=1e-6, rtol=0)
        assert not torch.allclose(before[:, position], after[:, position], atol=1e-2)


@switches
def test_earlier_tokens_and_their_order_change_later_logits(changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**SIZES | changed))
    idx = torch.arange(model.config.block_size)[None]
    swapped = idx.clone()
    swapped[0, [2, 3]] = swapped[0, [3, 2]]
    difference = (logits_of(model, idx) - logits_of(model, swapped))[0, -1].abs().max()
    assert difference > 1e-3


@switches
def test_written_out_attention_equals_the_fused_kernel(changed: dict[str, Any]) -> None:
    fused = random_model(ModelConfig(**SIZES | changed | {"attention": "sdpa"}))
    manual = GPT(replace(fused.config, attention="manual")).eval()
    manual.load_state_dict(fused.state_dict())
    idx = some_ids(fused.config)
    torch.testing.assert_close(logits_of(fused, idx), logits_of(manual, idx), atol=1e-5, rtol=1e-5)


@switches
def test_initial_loss_is_that_of_guessing(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES | changed | {"vocab_size": 257}))
    idx = some_ids(model.config, n_rows=32)
    loss = model(idx, idx.roll(-1, dims=1))
    assert loss.item() == pytest.approx(math.log(257), abs=0.1)


@pytest.mark.parametrize("changed", [{}, {"n_kv_head": 2, "tied_head": False}, GPT2], ids=str)
def test_one_batch_can_be_learned_by_heart(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES | changed))
    idx = some_ids(model.config, n_rows=4)
    targets = torch.randint(model.config.vocab_size, idx.shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_dropout_is_at_work_in_training_and_off_in_evaluation(attention: str) -> None:
    config = ModelConfig(**SIZES | {"dropout": 0.3, "attention": attention})
    model = random_model(config)
    without = GPT(replace(config, dropout=0.0)).eval()
    without.load_state_dict(model.state_dict())
    idx = some_ids(config)
    assert torch.equal(logits_of(model, idx), logits_of(without, idx))
    model.train()
    assert not torch.allclose(logits_of(model, idx), logits_of(model, idx), atol=1e-2)


@pytest.mark.parametrize(
    ("shares", "is_dropped"),
    [
        ({"dropout": 0.5}, True),
        ({"dropout": 0.5, "attn_dropout": 0.0}, False),
        ({"attn_dropout": 0.5}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_dropout_reaches_the_attention_weights_unless_told_otherwise(
    shares: dict[str, Any], is_dropped: bool, attention: str
) -> None:
    config = ModelConfig(**SIZES | shares | {"n_layer": 1, "attention": attention})
    model = random_model(config).train()
    for module in model.modules():  # all other places
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    idx = some_ids(config)
    is_same = torch.allclose(logits_of(model, idx), logits_of(model, idx), atol=1e-2)
    assert is_same != is_dropped


def test_more_tokens_than_the_context_are_refused() -> None:
    model = GPT(ModelConfig(**SIZES))
    with pytest.raises(ValueError, match="13 tokens, but the context holds 12"):
        model(torch.zeros(1, 13, dtype=torch.int64))


def test_number_of_parameters_worked_out_by_hand() -> None:
    config = ModelConfig(**SIZES, n_kv_head=2)
    attention = 32 * (32 + 16 + 16) + 32 * 32 + 2 * 8  # c_attn, c_proj, q_norm and k_norm
    mlp = 3 * 32 * 128  # 8/3 of 32 is 85.3, rounded up to 128
    assert GPT(config).n_parameters == 61 * 32 + 2 * (attention + mlp + 2 * 32) + 32
    untied = GPT(replace(config, tied_head=False))
    assert untied.n_parameters == GPT(config).n_parameters + 61 * 32


def test_sinusoidal_positions_worked_out_by_hand() -> None:
    """Section 3.5: channels 2i and 2i + 1 are sine and cosine of pos / 10,000^(2i/C)."""
    model = GPT(ModelConfig(**SIZES | {"n_embd": 4, "n_head": 2, "positions": "sinusoidal"}))
    expected = torch.tensor([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)])
    assert model.added_positions is not None
    torch.testing.assert_close(model.added_positions[3], expected)
    assert not any(
        "waves" in name for name in [*model.state_dict(), *dict(model.named_parameters())]
    )


@pytest.mark.parametrize("tied_head", [True, False])
def test_a_head_bias_is_added_to_the_scores(tied_head: bool) -> None:
    plain = random_model(ModelConfig(**SIZES, tied_head=tied_head))
    biased = GPT(replace(plain.config, head_bias=True)).eval()
    bias = torch.randn(61)
    biased.load_state_dict(plain.state_dict() | {"head_bias": bias})
    idx = some_ids(plain.config)
    torch.testing.assert_close(logits_of(biased, idx), logits_of(plain, idx) + bias)
    assert biased.n_parameters == plain.n_parameters + 61


def padded_like(model: GPT, pad_vocab: int) -> GPT:
    """Return ``model`` with rows of noise behind its vocabulary."""
    padded = GPT(replace(model.config, pad_vocab=pad_vocab)).train(model.training)
    state = model.state_dict()
    for name in state.keys() & {"wte.weight", "lm_head.weight", "head_bias"}:
        noise = 9 * torch.randn_like(padded.state_dict()[name])
        noise[: model.config.vocab_size] = state[name]
        state[name] = noise
    padded.load_state_dict(state)
    return padded


@pytest.mark.parametrize("changed", [{}, {"tied_head": False, "head_bias": True}], ids=str)
def test_padding_changes_neither_scores_nor_loss_nor_gradients(changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**SIZES, **changed))
    padded = padded_like(model, pad_vocab=32)
    assert padded.wte.weight.shape == (64, 32)
    idx = some_ids(model.config)
    torch.testing.assert_close(logits_of(padded, idx), logits_of(model, idx))
    losses = [each(idx, idx.roll(-1, dims=1)) for each in (model, padded)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    expected = dict(model.named_parameters())
    for name, parameter in padded.named_parameters():
        ours, theirs = parameter.grad, expected[name].grad
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours[: len(theirs)], theirs)
        assert not ours[len(theirs) :].any()


def gradients(model: GPT, idx: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """Return the loss, its gradients, and the bytes that were kept for backward."""
    n_bytes = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal n_bytes
        n_bytes += tensor.nbytes
        return tensor

    torch.manual_seed(7)  # of dropout
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(idx, idx.roll(-1, dims=1))
    loss.backward()
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None], n_bytes


@pytest.mark.parametrize("changed", [{}, GPT2, {"norm_first": False}], ids=str)
def test_activation_checkpointing_changes_no_bit_and_keeps_less(changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**SIZES | changed | {"dropout": 0.2})).train()
    idx = some_ids(model.config)
    loss, grads, n_bytes = gradients(model, idx)
    model.activation_checkpointing = True
    loss_again, grads_again, n_bytes_again = gradients(model, idx)
    assert torch.equal(loss, loss_again)
    assert len(grads) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert n_bytes_again < n_bytes / 4


@switches
def test_zero_init_makes_every_block_the_identity(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES | changed | {"norm_first": True}), zero_init=True).eval()
    x = torch.randn(2, 12, 32)
    angles = (model.cos, model.sin) if model.config.positions == "rope" else None
    for block in model.h:
        assert torch.equal(block(x, angles), x)


def test_parameters_can_be_counted_without_memory_for_them() -> None:
    config = ModelConfig(**GPT2, n_layer=48, n_head=25, n_embd=1600, vocab_size=50_257)
    with torch.device("meta"):
        model = GPT(replace(config, block_size=1024))
        theirs = GPT2LMHeadModel(GPT2Config(n_layer=48, n_head=25, n_embd=1600))
    assert model.n_parameters == sum(p.numel() for p in theirs.parameters()) == 1_557_611_200


def test_residual_projections_begin_narrower_with_depth() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES | {"n_layer": 8, "n_embd": 64}))
    expected = {"c_attn": 0.02, "c_proj": 0.02 / 4, "c_fc": 0.02, "c_gate": 0.02}  # sqrt(2 * 8) = 4
    for name, parameter in model.h.named_parameters():
        if parameter.dim() == 2:
            std = expected[name.split(".")[-2]]
            assert parameter.std().item() == pytest.approx(std, rel=0.1)
