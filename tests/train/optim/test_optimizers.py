"""What updates which parameter and how, and the optimizer's state on disk."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from tests.processes import run_python
from tests.train.runs import make_trainer, options
from train.batches.sources import make_source
from train.config import TrainConfig
from train.loop import update
from train.optim.lr_schedule import learning_rate_at
from train.optim.muon import Muon
from train.optim.optimizers import (
    ADAGRAD_EPS,
    DAMPING,
    Adagrad,
    AdamW,
    OptimizerGroup,
    make_optimizer,
)
from train.trainer import Trainer

CONFIG = TrainConfig(tokens_per_step=128, batch_size=8, weight_decay=0.3, learning_rate=1e-2)
MUON = replace(CONFIG, optimizer="muon", matrix_lr=2e-2)


def fresh_model(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config)


def parts_by_name(model: GPT, optimizer: OptimizerGroup) -> dict[str, Any]:
    """Return for each parameter what updates it."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: part for part in optimizer.optimizers for p in part.params}


@pytest.mark.parametrize("config", [CONFIG, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("bias", [True, False])
def test_each_is_updated_once_and_only_what_has_two_dimensions_decays(
    tiny_config: ModelConfig, config: TrainConfig, bias: bool
) -> None:
    model = fresh_model(replace(tiny_config, bias=bias, norm="layernorm", tied_head=False))
    optimizer = make_optimizer(model, config)
    n_updated = sum(len(part.params) for part in optimizer.optimizers)
    assert n_updated == len(list(model.parameters()))
    for name, part in parts_by_name(model, optimizer).items():
        is_vector = "ln_" in name or "_norm" in name or name.endswith("bias")
        assert part.weight_decay == (0.0 if is_vector else 0.3), name


def test_adagrad_updates_the_tables_and_nothing_else(tiny_config: ModelConfig) -> None:
    model = fresh_model(replace(tiny_config, ngrams=3, ngram_rows=20))
    for config in (CONFIG, MUON):
        optimizer = make_optimizer(model, replace(config, table_lr=0.5))
        by_name = parts_by_name(model, optimizer)
        tables = {name for name, part in by_name.items() if isinstance(part, Adagrad)}
        assert tables == {"wge.0.weight", "wge.1.weight"}
        assert len(by_name) == len(list(model.parameters()))
        assert by_name["wge.0.weight"].lr == pytest.approx(0.5)


def test_muon_updates_the_matrices_of_the_blocks_and_nothing_else(tiny_config: ModelConfig) -> None:
    model = fresh_model(replace(tiny_config, positions="learned", tied_head=False, bias=True))
    by_name = parts_by_name(model, make_optimizer(model, MUON))
    assert {name for name, part in by_name.items() if isinstance(part, Muon)} == {
        f"h.0.{name}.weight"
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_gate", "mlp.c_proj")
    }
    parts = parts_by_name(model, make_optimizer(model, CONFIG)).values()
    assert all(isinstance(part, AdamW) for part in parts)


def test_each_part_keeps_its_own_rate_through_the_schedule(tiny_config: ModelConfig) -> None:
    model = fresh_model(tiny_config)
    optimizer = make_optimizer(model, MUON)
    optimizer.set_lr(0.5e-2)
    rates = {type(part): part.lr for part in optimizer.optimizers if part.params}
    assert rates == pytest.approx({Muon: 1e-2, AdamW: 0.5e-2})


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"learning_rate": 0.0, "matrix_lr": 0.01}, {AdamW: 0.0, Muon: 0.01, Adagrad: 0.0}),
        ({"learning_rate": 0.0, "table_lr": 0.4}, {AdamW: 0.0, Muon: 2e-2, Adagrad: 0.4}),
        ({"matrix_lr": 0.0}, {AdamW: 1e-2, Muon: 0.0, Adagrad: 1e-2}),
        ({"learning_rate": 0.0, "matrix_lr": None}, {AdamW: 0.0, Muon: 0.0, Adagrad: 0.0}),
    ],
)
def test_a_rate_of_zero_is_that_of_its_own_optimizer_alone(
    tiny_config: ModelConfig, rates: dict[str, Any], expected: dict[Any, float]
) -> None:
    model = fresh_model(replace(tiny_config, ngrams=2, ngram_rows=20))
    config = replace(MUON, warmup_steps=0, **rates)
    optimizer = make_optimizer(model, config)
    for step, share in ((0, 1.0), (100, 0.1)):  # the floor is a tenth of the peak
        optimizer.set_lr(learning_rate_at(step, 100, config))
        found = {type(part): part.lr for part in optimizer.optimizers}
        assert found == pytest.approx({kind: share * lr for kind, lr in expected.items()})


def test_queries_keys_and_values_are_matrices_of_their_own(tiny_config: ModelConfig) -> None:
    # two heads of 8 queries, one of keys and values: 16, 8 and 8 rows
    model = fresh_model(replace(tiny_config, n_kv_head=1))
    optimizer = make_optimizer(model, replace(MUON, weight_decay=0.0))
    weights = dict(model.named_parameters())["h.0.attn.c_attn.weight"]
    rows = [16, 8, 8]
    parts = [torch.nn.Parameter(part.detach().clone()) for part in torch.split(weights, rows)]
    apart = Muon(params=parts, split_sizes={}, lr=2e-2, momentum=MUON.momentum, weight_decay=0.0)
    for seed in range(3):
        torch.manual_seed(seed)
        weights.grad = torch.randn_like(weights)
        for part, gradient in zip(parts, torch.split(weights.grad, rows), strict=True):
            part.grad = gradient.clone()
        optimizer.step()
        apart.step()
    expected = torch.cat([part.detach() for part in parts])
    torch.testing.assert_close(weights.detach(), expected)


@pytest.mark.parametrize(("config", "n_moments"), [(CONFIG, 3), (MUON, 1)], ids=["adamw", "muon"])
def test_the_state_comes_back_and_goes_on_the_same(
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    tmp_path: Path,
    config: TrainConfig,
    n_moments: int,
) -> None:
    model = fresh_model(tiny_config)
    trainer = make_trainer(model, data, config, cpu, batch_size=8)
    optimizer = trainer.optimizer
    for step in range(3):
        update(trainer, step, 1e-2)
    tensors = optimizer.state_dict()
    in_blocks = [name for name, p in model.h.named_parameters() if p.dim() == 2]
    others = len(list(model.parameters())) - len(in_blocks)
    # AdamW keeps exp_avg, exp_avg_sq and step, Muon its momentum
    assert len(tensors) == 3 * others + n_moments * len(in_blocks)
    save_file(tensors, tmp_path / "optimizer.safetensors")

    copy = GPT(tiny_config)
    copy.load_state_dict(model.state_dict())
    restored = make_optimizer(copy, config)
    restored.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    other = Trainer(
        copy, restored, make_source(data, config, copy.config.block_size), config, cpu, batch_size=8
    )
    for step in range(3, 6):
        assert update(trainer, step, 1e-2) == update(other, step, 1e-2)
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_batch_can_be_learned_by_heart(tiny_config: ModelConfig, optimizer: Any) -> None:
    model = fresh_model(tiny_config)
    config = TrainConfig(optimizer=optimizer, learning_rate=2e-2, matrix_lr=0.1)
    parts = make_optimizer(model, config)
    torch.manual_seed(1)
    idx = torch.randint(tiny_config.vocab_size, (4, 17))
    losses = []
    for _ in range(60):
        model.zero_grad()
        loss = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        parts.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 3 < losses[0]


def test_a_run_does_not_load_the_compiler_that_it_does_not_use(
    data: DataFolder, tmp_path: Path
) -> None:
    # torch.optim.Optimizer would, and take as long as importing torch
    arguments = ["train", "pretrain", "--data", str(data.path), *options(max_steps=2)]
    code = (
        "import runpy, sys\n"
        f"sys.argv = {arguments}\n"
        "try:\n"
        "    runpy.run_module('train', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    sys.exit(end.code or ('torch._dynamo' in sys.modules and 'torch._dynamo is there'))\n"
    )
    ended = run_python(["-c", code], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "val loss" in ended.stderr


ROWS = [torch.tensor([[0, 3, 3], [2, 0, 3]]), torch.tensor([[1, 3, 1]]), torch.tensor([[4, 4, 0]])]


@pytest.mark.parametrize("sparse", [True, False])
def test_steps_equal_those_of_torch_with_dense_gradients(*, sparse: bool) -> None:
    table = torch.randn(6, 4, requires_grad=True)
    theirs = table.detach().clone().requires_grad_(True)
    optimizer = Adagrad(params=[table], lr=0.3)
    first = torch.autograd.grad(F.embedding(ROWS[0], theirs).sin().square().sum(), theirs)[0]
    begin = DAMPING * float(first[[0, 2, 3]].square().mean())
    oracle = torch.optim.Adagrad([theirs], lr=0.3, eps=ADAGRAD_EPS, initial_accumulator_value=begin)
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
