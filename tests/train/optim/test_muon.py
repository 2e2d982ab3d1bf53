"""Muon against the singular value decomposition, against torch.optim.Muon, and its laws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from train.optim import muon
from train.optim.muon import ERROR, LOWEST, POLYNOMIALS, RMS, Muon, orthogonalised, scale


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32 also on CPUs that have bfloat16: the tolerances are narrow."""
    monkeypatch.setattr(muon, "cpu_has_bfloat16", lambda: False)


SHAPES = [(16, 16), (16, 24), (16, 32), (16, 100), (1, 7)]  # the last three by the small square


def with_singular_values(
    shape: tuple[int, int], values: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, V^T and the matrix U diag(values) V^T, all in float32."""
    torch.manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    return u.float(), vt.float(), (u @ torch.diag(values.double()) @ vt).float()


def update_of(gradients: list[Tensor]) -> list[Tensor]:
    """Return what one step at rate 1, without momentum or decay, subtracts from zeros."""
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon(params=parameters, split_sizes={}, lr=1.0, momentum=0.0, weight_decay=0.0).step()
    return [-parameter.detach() for parameter in parameters]


def test_the_polynomials_keep_what_they_promise() -> None:
    x = torch.logspace(torch.log10(torch.tensor(LOWEST)).item(), 0, 20_001, dtype=torch.float64)
    for a, b, c in POLYNOMIALS:
        x = a * x + b * x**3 + c * x**5
    assert (x - 1).abs().max() < ERROR
    assert (x - 1).abs().max() > 0.9 * ERROR  # and no more than they must


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_nearly_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    values = torch.logspace(0, -2, shape[0])  # of the norm at least a hundredth of 0.6
    u, vt, x = with_singular_values(shape, 37 * values)
    made = u.mT @ orthogonalised(x[None])[0] @ vt.mT
    assert (made.diagonal() - 1).abs().max() < ERROR
    torch.testing.assert_close(made, torch.diag(made.diagonal()), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(16, 32), (16, 100)])
def test_the_small_square_gives_what_the_long_way_gives(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, *shape)
    short = orthogonalised(x)
    monkeypatch.setattr(muon, "WIDE", 1000)
    torch.testing.assert_close(short, orthogonalised(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_bfloat16_comes_close_whatever_the_rank(shape: tuple[int, int], rank: int) -> None:
    rank = min(rank, *shape)
    values = torch.zeros(shape[0])
    values[:rank] = torch.linspace(1, 0.1, rank)
    u, vt, x = with_singular_values(shape, values)
    made = orthogonalised(x[None].bfloat16())[0]
    assert made.dtype == torch.bfloat16
    kept = (u.mT @ made.float() @ vt.mT).diagonal()[:rank]
    assert (kept - 1).abs().max() < ERROR + 0.1


def test_nothing_and_next_to_nothing_stay_finite() -> None:
    for size in (0.0, 1e-30, 1e-20, 1e-10, 1e18):
        for shape in SHAPES:
            x = torch.full((1, *shape), size)
            made = orthogonalised(x)
            assert made.isfinite().all()
            assert made.norm() <= 1 + ERROR  # rank 1 at most
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 9)), torch.zeros(1, 4, 9))


@pytest.mark.parametrize("shape", [(24, 24), (8, 96), (96, 8)])
def test_updates_of_any_shape_have_the_size_of_adamws(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    (update,) = update_of([torch.randn(shape)])
    assert update.square().mean().sqrt() == pytest.approx(RMS, rel=ERROR)
    assert scale(shape) == pytest.approx(RMS * max(shape) ** 0.5)


def test_the_size_of_a_gradient_does_not_matter_and_its_sign_does() -> None:
    torch.manual_seed(3)
    g = torch.randn(12, 20)
    (update,), (larger,), (opposite,) = (update_of([f * g]) for f in (1.0, 1024.0, -1.0))
    torch.testing.assert_close(larger, update)
    torch.testing.assert_close(opposite, -update)


def test_matrices_of_one_shape_either_way_up_do_not_mix() -> None:
    torch.manual_seed(4)
    gradients = [torch.randn(8, 24), torch.randn(24, 8), torch.randn(8, 8), torch.randn(8, 24)]
    together = update_of(gradients)
    for gradient, update in zip(gradients, together, strict=True):
        torch.testing.assert_close(update, update_of([gradient])[0])


def test_parts_on_top_of_each_other_are_updated_as_matrices_of_their_own() -> None:
    torch.manual_seed(5)
    rows = [16, 4, 4]
    parts = [torch.randn(n, 16) * size for n, size in zip(rows, (1.0, 100.0, 0.01), strict=True)]
    joined = torch.nn.Parameter(torch.zeros(24, 16))
    joined.grad = torch.cat(parts)
    Muon(params=[joined], split_sizes={joined: rows}, lr=1.0, momentum=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(-joined.detach(), torch.cat(update_of(parts)))


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_several_steps_equal_those_of_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(6)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.3}
    optimizer = Muon(params=[ours], split_sizes={}, **settings)
    peer = torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        peer.step()  # type: ignore[no-untyped-call]
    # torch's iterates in bfloat16, which has three digits
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_in_bfloat16_the_update_is_nearly_the_same_and_the_momentum_as_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*, bfloat16: bool) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(muon, "cpu_has_bfloat16", lambda: bfloat16)
        torch.manual_seed(7)
        weights = torch.nn.Parameter(torch.zeros(32, 48))
        weights.grad = torch.randn(32, 48)
        optimizer = Muon(params=[weights], split_sizes={}, lr=1.0, momentum=0.9, weight_decay=0.0)
        optimizer.step()
        return weights.detach(), optimizer.state[weights]["momentum_buffer"]

    (exact, momentum), (narrow, same) = step(bfloat16=False), step(bfloat16=True)
    assert torch.equal(momentum, same)
    assert 0 < (exact - narrow).norm() < 0.03 * exact.norm()


def test_what_has_no_gradient_stays() -> None:
    weights = torch.nn.Parameter(torch.ones(4, 4))
    Muon(params=[weights], split_sizes={}, lr=1.0, momentum=0.9, weight_decay=0.5).step()
    assert torch.equal(weights.detach(), torch.ones(4, 4))
