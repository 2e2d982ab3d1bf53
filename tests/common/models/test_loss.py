"""The loss in chunks against PyTorch's over whole scores: value, gradients, memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.models import loss
from common.models.loss import IGNORED, next_token_loss

N, C, V = 50, 8, 37


@pytest.fixture(autouse=True)
def chunks_of_sixteen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut ``N`` rows into three chunks and a shorter one."""
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 16 * V)
    monkeypatch.setattr(loss, "CHUNK_ROWS", 1)


def some_inputs(
    dtype: torch.dtype, *, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return hidden states, weight, bias and targets."""
    torch.manual_seed(0)
    hidden = torch.randn(N, C, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, C, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True) if has_bias else None
    return hidden, weight, bias, torch.randint(V, (N,))


def scores_kept(function: Any) -> int:
    """Return the numbers of the largest tensor that is made while ``function`` runs."""
    largest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in [out] if isinstance(t, Tensor))])
            return out

    with Watch():  # type: ignore[no-untyped-call]
        function()
    return largest


@pytest.mark.parametrize("n_ignored", [0, 20, N - 1])
@pytest.mark.parametrize("rows_at_once", [16, N])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_cross_entropy(
    dtype: torch.dtype,
    tolerance: float,
    has_bias: bool,
    rows_at_once: int,
    n_ignored: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", rows_at_once * V)
    hidden, weight, bias, targets = some_inputs(dtype, has_bias=has_bias)
    targets[torch.randperm(N)[:n_ignored]] = IGNORED
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    ours = next_token_loss(hidden, weight, bias, targets, vocab_size=V)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
    # times 3: what follows the loss reaches the gradient
    theirs_grad = torch.autograd.grad(3 * expected, leaves)
    ours_grad = torch.autograd.grad(3 * ours, leaves)
    for ours_leaf, theirs_leaf in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(ours_leaf, theirs_leaf, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows_at_once", [16, N])
def test_where_nothing_is_learned_the_loss_is_zero_and_so_are_its_gradients(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", rows_at_once * V)
    hidden, weight, bias, _ = some_inputs(torch.float64, has_bias=False)
    ours = next_token_loss(hidden, weight, bias, torch.full((N,), IGNORED), vocab_size=V)
    assert ours.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(ours, (hidden, weight)))


def test_a_weight_that_does_not_learn_costs_no_gradient() -> None:
    hidden, weight, bias, targets = some_inputs(torch.float64, has_bias=True)
    full = next_token_loss(hidden, weight, bias, targets, vocab_size=V)
    (expected,) = torch.autograd.grad(full, (hidden,))
    frozen = next_token_loss(hidden, weight.detach(), bias, targets, vocab_size=V)
    chunked: Any = frozen.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    assert [tensor is None for tensor in chunked.saved_tensors] == [False, True, False]
    torch.testing.assert_close(torch.autograd.grad(frozen, (hidden,))[0], expected)


@pytest.mark.parametrize("n_ignored", [0, 20])
def test_without_gradients_the_loss_is_the_same(n_ignored: int) -> None:
    hidden, weight, bias, targets = some_inputs(torch.float64, has_bias=True)
    targets[:n_ignored] = IGNORED
    with torch.inference_mode():
        ours = next_token_loss(hidden, weight, bias, targets, vocab_size=V)
        expected = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("rows_at_once", [16, N])
def test_rows_beyond_the_vocabulary_have_no_part(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", rows_at_once * V)
    hidden, weight, bias, targets = some_inputs(torch.float64, has_bias=True)
    assert bias is not None
    known = 30
    targets %= known
    ours = next_token_loss(hidden, weight, bias, targets, vocab_size=known)
    expected = F.cross_entropy(F.linear(hidden, weight[:known], bias[:known]), targets)
    torch.testing.assert_close(ours, expected)
    leaves = (hidden, weight, bias)
    theirs_grad = torch.autograd.grad(expected, leaves)
    for ours_leaf, theirs_leaf in zip(torch.autograd.grad(ours, leaves), theirs_grad, strict=True):
        torch.testing.assert_close(ours_leaf, theirs_leaf)


def test_a_network_in_bfloat16_gets_nearly_the_gradients_of_float32() -> None:
    hidden, weight, bias, targets = some_inputs(torch.float32, has_bias=True)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    expected = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight, bias), targets), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        ours = next_token_loss(hidden, weight, bias, targets, vocab_size=V)
    assert ours.dtype == torch.float32
    for ours_leaf, theirs_leaf in zip(torch.autograd.grad(ours, leaves), expected, strict=True):
        assert ours_leaf.dtype == torch.float32
        assert (ours_leaf - theirs_leaf).norm() < 0.01 * theirs_leaf.norm()


def test_no_more_scores_than_a_chunk_are_ever_held() -> None:
    hidden, weight, bias, targets = some_inputs(torch.float32, has_bias=False)
    leaves = (hidden, weight)

    def ours() -> None:
        torch.autograd.grad(next_token_loss(hidden, weight, bias, targets, vocab_size=V), leaves)

    def theirs() -> None:
        torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight, bias), targets), leaves)

    assert scores_kept(ours) == 16 * V
    assert scores_kept(theirs) == N * V  # the measure sees what it is to see


def test_a_second_backward_is_refused() -> None:
    hidden, weight, bias, targets = some_inputs(torch.float32, has_bias=False)
    value = next_token_loss(hidden, weight, bias, targets, vocab_size=V)
    torch.autograd.grad(value, (hidden, weight), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, (hidden, weight))
