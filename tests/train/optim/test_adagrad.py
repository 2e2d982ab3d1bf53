import math

import pytest
import torch
from torch.nn import functional as F

from train.optim.adagrad import DAMPING, EPS, Adagrad

ROWS = [torch.tensor([[0, 3, 3], [2, 0, 3]]), torch.tensor([[1, 3, 1]]), torch.tensor([[4, 4, 0]])]


@pytest.mark.parametrize("sparse", [True, False])
def test_steps_equal_those_of_torch_with_dense_gradients(*, sparse: bool) -> None:
    table = torch.randn(6, 4, requires_grad=True)
    theirs = table.detach().clone().requires_grad_(True)
    optimizer = Adagrad(params=[table], lr=0.3)
    first = torch.autograd.grad(F.embedding(ROWS[0], theirs).sin().square().sum(), theirs)[0]
    begin = DAMPING * float(first[[0, 2, 3]].square().mean())
    oracle = torch.optim.Adagrad([theirs], lr=0.3, eps=EPS, initial_accumulator_value=begin)
    for rows in ROWS:
        for weight, is_sparse in ((table, sparse), (theirs, False)):
            weight.grad = None
            F.embedding(rows, weight, sparse=is_sparse).sin().square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        oracle.step()
        torch.testing.assert_close(table, theirs)


def test_rows_without_a_gradient_stay_as_they_are() -> None:
    table = torch.randn(6, 4, requires_grad=True)
    before = table.detach().clone()
    F.embedding(torch.tensor([1, 4]), table, sparse=True).sum().backward()  # type: ignore[no-untyped-call]
    Adagrad(params=[table], lr=0.1).step()
    assert torch.equal(table[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    # gradients of 1: their squares add up to DAMPING + 1
    expected = before[[1, 4]] - 0.1 / math.sqrt(DAMPING + 1)
    torch.testing.assert_close(table[[1, 4]], expected)
