"""Folders that transformers saved, as runs: the same logits and ids, and training from them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers import LlamaForCausalLM as Llama
from transformers import Qwen3ForCausalLM as Qwen3

from common.chat_format import CHAT_TEMPLATE
from common.checkpoint import MODEL_NAME, load_checkpoint, newest_valid
from common.errors import UserError
from common.files import write_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.run_dir import CONFIG_NAME, RUN_VERSION, read_json
from common.tokenizer import SPECIAL_TOKENS, CharTokenizer, Tokenizer
from sample.export.run import export_run
from tests.sample.chats import BYTES, make_chat_run
from tests.sample.export.test_hf import make_run
from tests.tiny import random_model, words
from train.setup.import_folder import import_folder

CPU = torch.device("cpu")
MODERN, GPT2 = ARCHITECTURES["modern"], ARCHITECTURES["gpt2"]
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64}
TEXTS = [words(300), "  \n\n\u00fcber 12345's  <|endoftext|> <|end|>", ""]


def save_by_transformers(folder: Path, kind: str, **changed: Any) -> Any:
    """Save a network of random weights, with a vocabulary that tokenizers learned."""
    learned = tokenizers.Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    learned.train_from_iterator([words(2000)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    n = len(tokenizer)
    model: Any
    if kind == "gpt2":
        sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
        model = GPT2LMHeadModel(GPT2Config(**{"vocab_size": n} | sizes | changed))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        sizes |= {"max_position_embeddings": 32}
        settings: Any = {"vocab_size": n} | sizes | changed
        model = (
            Qwen3(Qwen3Config(**settings)) if kind == "qwen3" else Llama(LlamaConfig(**settings))
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), learned


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}),
        ("qwen3", {"vocab_size": 320}),  # more rows than ids
        ("qwen3", {"tie_word_embeddings": True}),
        (
            "qwen3",
            {"head_dim": 24, "rms_norm_eps": 1e-3, "rope_parameters": {"rope_theta": 1e6}},
        ),
        # as SmolLM2
        (
            "llama",
            {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
            | {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}
            | {"tie_word_embeddings": True},
        ),
        ("llama", {"rms_norm_eps": 1e-5, "head_dim": None}),  # as TinyLlama
        ("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
    ],
)
def test_what_transformers_saved_has_its_logits_and_ids_also_exported_again(
    kind: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    model, learned = save_by_transformers(tmp_path / "theirs", kind, **changed)
    run = import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    ours = load_checkpoint(newest_valid(run, "best"), CPU)
    learned.encode_special_tokens = True
    for text in TEXTS:
        assert ours.tokenizer.encode(text) == learned.encode(text).ids
    assert list(ours.tokenizer.special_tokens) == list(SPECIAL_TOKENS)
    assert ours.tokenizer.eot_id == 0
    n = learned.get_vocab_size()
    idx = torch.randint(0, n, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = model(idx).logits[..., :n]
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours.model.eval()(idx)[..., :n], theirs, atol=1e-5, rtol=1e-5)
    export_run("x", tmp_path / "again", "hf", "float32", tmp_path / "runs", "best")
    again, before = (load_file(tmp_path / f / MODEL_NAME) for f in ("again", "theirs"))
    for name, tensor in before.items():
        assert torch.equal(again[name][: len(tensor)], tensor[: len(again[name])]), name


@pytest.mark.parametrize(
    "switches",
    [
        MODERN | {"n_kv_head": 2, "dropout": 0.1}, MODERN | {"tied_head": False, "qk_norm": False},
        GPT2, GPT2 | {"tied_head": False, "bias": False, "mlp": "relu"},
        MODERN | {"mlp": "relu2", "ngrams": 3, "ngram_rows": 97, "ngram_dim": 7,
        "ngram_min_count": 2,        "ngram_dropout": 0.25},
        MODERN | {"mlp": "relu2", "qk_norm": False},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "tokenizer", [BYTES, CharTokenizer(tuple("\n ab\u00fc"))], ids=lambda tokenizer: tokenizer.name
)
def test_import_of_export_is_the_run_bit_for_bit(
    switches: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES | switches)
    run = make_run(tmp_path / "runs", random_model(config), tokenizer)
    export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    imported = import_folder(tmp_path / "out", tmp_path / "runs", "x")
    assert imported.name == "x-2"
    before, after = (newest_valid(each, "best") for each in (run, imported))
    for name in (MODEL_NAME, tokenizer.file_name):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    loaded = load_checkpoint(after, CPU)
    assert loaded.model.config == config
    assert loaded.tokenizer.special_tokens == tokenizer.special_tokens
    assert loaded.chat_template is None


def test_a_run_that_answers_answers_when_it_comes_back(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    export_run("talk", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    run = import_folder(tmp_path / "out", tmp_path / "runs", "back")
    assert read_json(run / CONFIG_NAME)["format"] == RUN_VERSION
    assert load_checkpoint(newest_valid(run, "best"), CPU).chat_template == CHAT_TEMPLATE


def test_that_a_chat_template_of_others_is_not_taken_over_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    save_by_transformers(tmp_path / "in", "gpt2")
    (tmp_path / "in" / "chat_template.jinja").write_text("{{ 1 }}", "utf-8")
    run = import_folder(tmp_path / "in", tmp_path / "runs", "x")
    assert load_checkpoint(newest_valid(run, "best"), CPU).chat_template is None
    assert "no chat format but this program's own is taken over" in caplog.text


def test_a_vocabulary_of_another_network_is_refused(tmp_path: Path) -> None:
    save_by_transformers(tmp_path / "in", "gpt2")
    with pytest.raises(UserError, match="it is another"):
        import_folder(tmp_path / "in", tmp_path / "runs", "x", "gpt2")
    assert not (tmp_path / "runs").exists()


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit_file(folder: Path) -> None:
        value = json.loads((folder / name).read_bytes())
        change(value)
        write_json(folder / name, value)

    return edit_file


def edit_weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit_file(folder: Path) -> None:
        weights = load_file(folder / MODEL_NAME)
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        change(weights)
        save_file(weights, folder / MODEL_NAME, {"format": "pt"})

    return edit_file


def as_published(weights: dict[str, Any]) -> None:
    """Name tensors as the published file of GPT-2 does, with a mask of attention beside them."""
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)
    weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()


def test_gpt2_as_it_was_published_is_the_same(tmp_path: Path) -> None:
    save_by_transformers(tmp_path / "theirs", "gpt2")
    now = import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    edit_weights(as_published)(tmp_path / "theirs")
    edit(
        "tokenizer.json",
        lambda t: t["model"].update(merges=[" ".join(pair) for pair in t["model"]["merges"]]),
    )(tmp_path / "theirs")
    edit("config.json", lambda c: [c.pop(n) for n in ("n_inner", "tie_word_embeddings")])(
        tmp_path / "theirs"
    )
    then = import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    for name in (MODEL_NAME, "vocab.tiktoken"):
        before, after = (newest_valid(run, "best") / name for run in (now, then))
        assert after.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("qwen3", {"attention_dropout": 0.1}),
        ("gpt2", {"attn_pdrop": 0.1, "resid_pdrop": 0.2, "embd_pdrop": 0.2}),
    ],
)
def test_dropout_of_attention_and_of_the_rest_are_kept_apart(
    kind: str, shares: dict[str, float], tmp_path: Path
) -> None:
    save_by_transformers(tmp_path / "theirs", kind, **shares)
    run = import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    config = load_checkpoint(newest_valid(run, "best"), CPU).model.config
    assert config.dropout == shares.get("resid_pdrop", 0.0)  # Qwen3 drops nothing else
    assert config.attention_dropout == 0.1
    export_run("x", tmp_path / "again", "hf", "float32", tmp_path / "runs", "best")
    exported = json.loads((tmp_path / "again/config.json").read_text(encoding="utf-8"))
    assert shares.items() <= exported.items()


def test_dropout_that_is_one_share_for_all_is_one_setting_again(tmp_path: Path) -> None:
    shares = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.1)
    save_by_transformers(tmp_path / "theirs", "gpt2", **shares)
    run = import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    config = load_checkpoint(newest_valid(run, "best"), CPU).model.config
    assert config.dropout == 0.1
    assert replace(config, dropout=0.0).attention_dropout == 0.0


def test_a_network_in_several_files_is_the_same(tmp_path: Path) -> None:
    model, _ = save_by_transformers(tmp_path / "theirs", "qwen3")
    runs = [import_folder(tmp_path / "theirs", tmp_path / "runs", "x")]
    (tmp_path / "theirs" / MODEL_NAME).unlink()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    runs.append(import_folder(tmp_path / "theirs", tmp_path / "runs", "x"))
    one, other = (newest_valid(run, "best") / MODEL_NAME for run in runs)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (edit("config.json", lambda c: c.update(model_type="mamba")), "is of a mamba"),
        (edit("config.json", lambda c: c.update(model_type="qwen3_moe")), "is of a qwen3_moe"),
        (edit("config.json", lambda c: c.update(attention_bias=True)), "attention_bias is True"),
        (edit("config.json", lambda c: c.update(use_sliding_window=True)), "use_sliding_window"),
        (
            edit("config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"})),
            "quantization_config is",
        ),
        (edit("config.json", lambda c: c["rope_parameters"].update(rope_type="llama3")), "llama3"),
        (edit("config.json", lambda c: c.update(partial_rotary_factor=0.5)), "partial_rotary"),
        (
            edit(
                "config.json",
                lambda c: [c.pop("rope_parameters"), c.update(rope_scaling={"type": "linear"})],
            ),
            "rope_type is linear",
        ),
        (edit("config.json", lambda c: c.update(head_dim=16)), "does not fit"),
        (edit("config.json", lambda c: c.update(hidden_act="gelu")), "of a qwen3 with gelu"),
        (edit("config.json", lambda c: c.update(hidden_act="relu")), "the same as up_proj"),
        (edit("config.json", lambda c: c.update(intermediate_size=40)), "does not fit"),
        (edit("config.json", lambda c: c.pop("hidden_size")), "KeyError: 'hidden_size'"),
        (
            edit("tokenizer.json", lambda t: t["model"].update(type="WordPiece")),
            r"tokenizer\.json: cannot be",
        ),
        (edit("tokenizer.json", lambda t: t["model"]["vocab"].pop("a")), "no ids for some bytes"),
        (
            edit("tokenizer.json", lambda t: t.update(normalizer={"type": "x"})),
            r"tokenizer\.json: cannot be",
        ),
        (edit("tokenizer.json", lambda t: t.update(added_tokens=[])), "with which documents end"),
        (edit_weights(lambda w: w.pop("model.norm.weight")), "lacks model.norm.weight in"),
        (edit_weights(lambda w: w.update(bias=w["model.norm.weight"] + 1)), "holds bias"),
        (lambda folder: (folder / "config.json").write_text("[", "utf-8"), "cannot be imported"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be"),
        (lambda folder: (folder / MODEL_NAME).write_bytes(b"x"), "cannot be imported"),
    ],
)
def test_what_is_not_ours_is_refused_by_its_name_and_makes_no_run(
    spoil: Callable[[Path], object], named: str, tmp_path: Path
) -> None:
    save_by_transformers(tmp_path / "theirs", "qwen3")
    spoil(tmp_path / "theirs")
    with pytest.raises(UserError, match=named):
        import_folder(tmp_path / "theirs", tmp_path / "runs", "x")
    assert not (tmp_path / "runs").exists()
