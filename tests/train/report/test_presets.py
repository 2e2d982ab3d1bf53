"""The presets against the systems that they name, and each in training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from common.dataset import DataFolder
from common.device import Device
from common.huggingface.network import check_stock, config_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT, Attention, Block
from sample.export.gguf import NETWORKS
from tests.tiny import prepare_text, random_model, words
from tests.train.runs import make_trainer, pretrain
from train.cli import main
from train.config import LENGTHS, TrainConfig
from train.loop import update
from train.optim.lr_schedule import learning_rate_at
from train.presets import AUTO, PRESETS
from train.report import presets as preset_table
from train.setup.autotune import choose_batch_size

# Too large for ten quick steps, or for the memory of a small machine: fewer layers, as wide.
FEWER_LAYERS = {
    "medium": 1, "gpt2": 2, "gpt2-medium": 1, "gpt2-large": 1, "gpt2-xl": 1, "toygpt-small": 2,
    "toygpt-medium": 1, "toygpt-large": 1,
}  # fmt: skip
QUICK = ("tiny", "tiny-portable", "nanogpt-shakespeare-cpu", "custom-llm", "gpt-40k", "hellogpt")
SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PRESETS]


def n_parameters(name: str) -> int:
    return preset_table.meta_model(PRESETS[name]).n_parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("toygpt-small", "123.70"), ("toygpt-medium", "253.06"), ("toygpt-large", "1311.58")],
)
def test_toygpt_has_the_parameters_that_it_publishes(name: str, millions: str) -> None:
    assert f"{n_parameters(name) / 1e6:.2f}" == millions


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_gpt2_is_as_large_as_in_transformers(name: str) -> None:
    c = preset_table.meta_model(PRESETS[name]).config
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(
            GPT2Config(
                n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size
            )
        )
    assert n_parameters(name) == sum(p.numel() for p in theirs.parameters())
    published = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}  # millions
    assert round(n_parameters(name) / 1e6) == published[name]


@pytest.mark.parametrize(
    ("name", "millions"), [("nanogpt-shakespeare", "10.65"), ("nanogpt-shakespeare-cpu", "0.80")]
)
def test_nanogpts_networks_have_the_parameters_that_it_prints(name: str, millions: str) -> None:
    model = preset_table.meta_model(PRESETS[name])
    without_positions = model.n_parameters - model.wpe.weight.numel()  # as nanoGPT counts
    assert f"{without_positions / 1e6:.2f}" == millions


def test_gpt_40k_has_the_parameters_that_it_prints_and_biases_of_queries_keys_values() -> None:
    assert n_parameters("gpt-40k") == 1_862_878 + 4 * 3 * 192


@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_tiny_portable_is_a_network_of_transformers_and_llama_cpp(tokenizer: str) -> None:
    preset = PRESETS["tiny-portable"]
    c = ModelConfig(**preset.model_for(tokenizer, 1 << 20), vocab_size=preset.vocab_size)
    assert check_stock(c) in NETWORKS  # llama.cpp's
    said = config_json(c)
    assert "auto_map" not in said  # no code of ours
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**said))
    assert type(theirs).__name__ == said["architectures"][0]
    assert theirs.num_parameters() == n_parameters("tiny-portable")


class SeparateHeads(nn.Module):
    """Attention as lecture code writes it: a head at a time, then a projection of all results."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        c = attention.config
        hs = c.head_size
        # queries, keys, values x heads
        weights = attention.c_attn.weight.view(3, c.n_head, hs, c.n_embd)
        biases = attention.c_attn.bias.view(3, c.n_head, hs)
        self.heads = [
            [self._linear(weights[part, head], biases[part, head]) for part in range(3)]
            for head in range(c.n_head)
        ]
        self.projection = attention.c_proj

    @staticmethod
    def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C)."""
        results = []
        for query, key, value in self.heads:
            scores = query(x) @ key(x).transpose(1, 2) / key.out_features**0.5
            later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
            results.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ value(x))
        return self.projection(torch.cat(results, dim=-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["custom-llm", "gpt-40k"])
def test_separate_heads_and_a_projection_are_our_attention(name: str) -> None:
    config = ModelConfig(**PRESETS[name].model | {"n_layer": 1}, vocab_size=10)
    attention = random_model(config).h[0].attn
    assert isinstance(attention, Attention)
    x = torch.randn(2, 9, config.n_embd)
    with torch.no_grad():
        torch.testing.assert_close(
            attention(x, None), SeparateHeads(attention)(x), atol=1e-4, rtol=1e-4
        )


def test_custom_llm_normalises_after_the_sum() -> None:
    config = ModelConfig(**PRESETS["custom-llm"].model, vocab_size=10)
    block = random_model(config).h[0]
    assert isinstance(block, Block)
    x = torch.randn(2, 9, config.n_embd)
    with torch.no_grad():
        y = block.ln_1(x + block.attn(x, None))
        inner = torch.relu(block.mlp.c_fc(y))
        torch.testing.assert_close(block(x, None), block.ln_2(y + block.mlp.c_proj(inner)))


def test_every_preset_says_how_long_in_one_way() -> None:
    for name, preset in PRESETS.items():
        config = TrainConfig(**preset.train)
        assert sum(getattr(config, length) is not None for length in LENGTHS) == 1, name


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_leaves_nothing_of_a_presets_switches_behind(
    name: str, architecture: str
) -> None:
    """The weights are those of a network that had the preset's sizes alone to begin with."""
    sizes = (
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "ngram_rows",
        "pad_vocab",
        "tied_head",
    )
    preset = PRESETS[name].model
    switches = ARCHITECTURES[architecture]

    def weights(settings: dict[str, Any]) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = GPT(ModelConfig(**settings, vocab_size=10))
        return {name: weight.shape for name, weight in model.state_dict().items()}

    alone = {key: value for key, value in preset.items() if key in sizes} | switches
    assert weights(preset | switches) == weights(alone)


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Return data with a validation split longer than GPT-2's context."""
    return prepare_text(words(6_000), tmp_path_factory.mktemp("long"))


@pytest.mark.parametrize("name", SLOW)
def test_every_preset_takes_ten_steps(name: str, long_data: DataFolder, cpu: Device) -> None:
    preset, tokenizer = PRESETS[name], long_data.tokenizer()
    chosen = preset.model_for(tokenizer.kind, long_data.n_tokens("train"))
    shape = ModelConfig(**chosen, vocab_size=tokenizer.vocab_size)
    shape = replace(shape, n_layer=FEWER_LAYERS.get(name, shape.n_layer))
    settings: dict[str, Any] = {k: v for k, v in preset.train.items() if k not in LENGTHS}
    torch.manual_seed(1)
    model = GPT(shape)
    # one row a step, where the preset has up to a thousand: what is learned here is that it runs
    settings |= {"max_steps": 10, "tokens_per_step": shape.block_size}
    config = TrainConfig(**settings)
    batch_size = choose_batch_size(config, shape, cpu)
    trainer = make_trainer(model, long_data, config, cpu, batch_size=batch_size)
    rates = [learning_rate_at(step, 10, config) for step in range(10)]
    updates = [update(trainer, step, lr) for step, lr in enumerate(rates)]
    assert all(done.finite for done in updates)
    # the first row once more, as rows are not equally hard
    assert update(trainer, 0, rates[-1]).loss < updates[0].loss


def test_the_table_has_a_line_for_each_preset() -> None:
    result = CliRunner().invoke(main, ["presets", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines() if line}
    assert lines["gpt2-xl"][1:6] == ["48", "25", "1600", "1024", "1,557,611,200"]
    assert lines["toygpt-large"][1:6] == ["24", "16", "2048", "512", "1,311,579,217"]
    assert lines["tiny"][-2:] == ["5m", "00s"]
    assert set(PRESETS) <= set(lines)
    assert all(f"{name}: {preset.meaning}" in result.output for name, preset in PRESETS.items())


def test_a_preset_by_name_says_all_that_a_run_would_have() -> None:
    result = CliRunner().invoke(main, ["presets", "gpt-40k"])
    assert result.exit_code == 0, result.output
    assert "--tokenizer char" in result.output
    lines = result.output.splitlines()
    assert "* --learning-rate 0.0003" in lines
    assert "* --no-tied-head" in lines
    assert "  --beta1 0.9" in lines


@pytest.mark.parametrize(
    ("tokenizer", "given", "n_grams", "min_count"),
    [("char", {}, 5, 0), ("bpe", {}, 5, 2), ("char", {"ngrams": 2}, 2, 0)],
)
def test_of_characters_tiny_looks_up_all_n_grams(
    tokenizer: str, given: dict[str, Any], n_grams: int, min_count: int, tmp_path: Path
) -> None:
    data = prepare_text(words(500), tmp_path, tokenizer)
    run = pretrain(data.path, tmp_path, max_steps=1, ngram_rows=8, **given)
    shape = json.loads((run / "config.json").read_bytes())["model"]
    found = (shape["ngrams"], shape["ngram_rows"], shape["ngram_min_count"])
    assert found == (n_grams, 8, min_count)
    said = CliRunner().invoke(main, ["presets", "tiny"]).output.splitlines()
    assert "* --ngrams 5" in said
    assert "* --ngram-min-count 0 where the ids of the data are characters" in said
    assert "* --block-size 256 where the ids of the data are characters" in said


def test_a_preset_says_its_length_as_it_sets_it() -> None:
    assert preset_table.length_of(TrainConfig(minutes=2.0)) == "2m 00s"
    assert preset_table.length_of(TrainConfig(max_steps=10_000)) == "10,000 steps"
    assert preset_table.length_of(TrainConfig(epochs=2.5)) == "2.5 epochs"


def test_help_names_what_auto_decides_by_the_presets() -> None:
    """What only other presets set has its declared default, as without --preset."""
    assert set(AUTO) <= set(PRESETS)
    text = CliRunner().invoke(main, ["pretrain", "--help"]).output
    words_of_help = " ".join(text.split())
    assert "[default: (0)" in words_of_help.partition("--patience ")[2][:120]
    assert "[default: (the preset's)" in words_of_help.partition("--minutes ")[2][:200]


@pytest.mark.parametrize(
    ("n_tokens", "rows"), [(0, 1 << 10), (600_000, 1 << 17), (1 << 40, 1 << 19)]
)
def test_tables_have_rows_in_proportion_to_the_text(n_tokens: int, rows: int) -> None:
    assert PRESETS["tiny"].model_for("bpe", n_tokens)["ngram_rows"] == rows
    assert PRESETS["tiny"].model["ngram_rows"] == 1 << 19
    four_times = 4 << 19  # as train presets says
    assert PRESETS["tiny"].model_for("bpe", four_times)["ngram_rows"] == 1 << 19
    assert PRESETS["tiny"].model_for("bpe", four_times - 1)["ngram_rows"] == 1 << 18
