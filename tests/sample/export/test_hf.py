"""An exported folder against transformers, which loads it as it would any other."""

import json
from functools import partial
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import pytest
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.checkpoint import save_checkpoint
from common.errors import ConfigError, UserError
from common.files import write_json
from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.models.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from common.tokenizer import CharTokenizer, Tokenizer
from sample.export.run import export_run
from sample.text.prompt import CHAT, Message, encode
from tests.processes import run_python
from tests.sample.chats import BYTES, END, make_chat_run
from tests.tiny import random_model
from train.setup.import_folder import import_folder

MODERN, GPT2 = ARCHITECTURES["modern"], ARCHITECTURES["gpt2"]
SIZES: dict[str, Any] = {"block_size": 256, "n_layer": 2, "n_head": 4, "n_embd": 32}
RELU2 = MODERN | {"mlp": "relu2"}
TABLES = RELU2 | {"ngrams": 3, "ngram_rows": 97}
NARROW = TABLES | {"ngrams": 5, "ngram_dim": 7, "ngram_min_count": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", MODERN | {"n_kv_head": 2}),
    "qwen3, large": (
        "Qwen3ForCausalLM", MODERN | {"head_dim": 16, "rope_theta": 1e6, "norm_eps": 1e-3}
    ),
    "qwen3, relu": ("Qwen3ForCausalLM", RELU2),
    "llama": ("LlamaForCausalLM", MODERN | {"qk_norm": False}),
    "arcee": ("ArceeForCausalLM", RELU2 | {"qk_norm": False}),
    "tables": ("QuernForCausalLM", TABLES),
    "narrow tables": ("QuernForCausalLM", NARROW),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"n_inner": 48}),
    "gpt2, relu": ("GPT2LMHeadModel", GPT2 | {"mlp": "relu"}),
    "gpt2, no bias": ("GPT2LMHeadModel", GPT2 | {"bias": False}),
}  # fmt: skip
UNTIED = {"tied_head": False, "pad_vocab": 64}
CASES = {
    name: (kind, switches | {"tied_head": True}) for name, (kind, switches) in NETWORKS.items()
}
CASES |= {f"{name}, untied": (kind, s | UNTIED) for name, (kind, s) in NETWORKS.items()}
FEW = ("qwen3", "llama", "arcee", "narrow tables, untied", "gpt2")  # the others' tests are slow
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@pytest.fixture(autouse=True)
def _code_is_copied_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))


def make_run(runs_dir: Path, model: GPT, tokenizer: Tokenizer, name: str = "x") -> Path:
    run = new_run(runs_dir, name)
    write_json(run / "config.json", {"format": 1})
    save_checkpoint(run, 1, model, {}, {"progress": {"step": 1, "n_tokens": 5}}, tokenizer)
    return run


def a_model(**switches: Any) -> GPT:
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **SIZES | switches))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.3)  # else attention is all on one token
    return model


def load(folder: Path, dtype: str = "float32") -> Any:
    kind = getattr(torch, dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=kind, trust_remote_code=True).eval()


def some_ids(n_rows: int, n: int) -> Tensor:
    return torch.randint(0, 256, (n_rows, n), generator=torch.Generator().manual_seed(0))


# The most that transformers' logits, computed in a type, may be away from the network's in float32:
# the root of the mean square, over that of the logits, and any one of them, over the range of all.
# A number of 8 bits is off by up to 0.4 %.
ROUNDING = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_logits(case: str, dtype: str, tmp_path: Path) -> None:
    name, switches = CASES[case]
    model, idx, out = a_model(**switches), some_ids(2, 40), tmp_path / "out"
    make_run(tmp_path / "runs", model, BYTES)
    export_run("x", out, "hf", dtype, tmp_path / "runs", "best")
    assert json.loads((out / "config.json").read_bytes())["dtype"] == dtype
    with torch.inference_mode():
        whole = model(idx)
        assert whole.std() > 0.3  # nothing is near zero by itself
        for parameter in model.parameters():  # and not the angles of rotary positions
            parameter.copy_(parameter.to(getattr(torch, dtype)))
        theirs = load(out)  # the same rounded weights, computed with in float32
        assert type(theirs).__name__ == name
        torch.testing.assert_close(theirs(idx).logits, model(idx), atol=1e-4, rtol=0)
        away = load(out, dtype)(idx).logits.float() - whole
        assert away.norm() < ROUNDING[dtype] * whole.norm()
        assert away.abs().max() < ROUNDING[dtype] * (whole.max() - whole.min())


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in CASES],
)
def test_200_greedy_tokens_are_the_same_also_beside_a_longer_prompt(
    case: str, tmp_path: Path
) -> None:
    model, idx, out = a_model(**CASES[case][1]), some_ids(2, 8), tmp_path / "out"
    with torch.no_grad():
        model.wte.weight.mul_(0.1)  # else a tied head would only repeat the last id
        model.ln_f.weight.mul_(10)  # type: ignore[operator]
        model.head_weight[256:] = 0  # special tokens score 0, which is never the most
    make_run(tmp_path / "runs", model, BYTES)
    export_run("x", out, "hf", "float32", tmp_path / "runs", "best")
    mask = torch.ones_like(idx)
    mask[1, :3] = 0  # the second prompt is shorter
    theirs = load(out).generate(idx, attention_mask=mask, max_new_tokens=200, **GREEDY)
    decoder = Decoder(make_backend(model), BYTES)
    config = GenerateConfig(max_new_tokens=200, temperature=0)
    for row, n_left in ((0, 0), (1, 3)):
        ours = [token.idx for token in generate(decoder, idx[row, n_left:].tolist(), config)]
        assert len(ours) == 200
        assert theirs[row, 8:].tolist() == ours
        assert len(set(ours)) > 2  # not one id over and over, on which anything would agree


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", FEW)
def test_what_is_imported_from_an_export_is_exported_as_the_same_bytes(
    case: str, dtype: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", a_model(**CASES[case][1]), BYTES)
    export_run("x", tmp_path / "out", "hf", dtype, tmp_path / "runs", "best")
    import_folder(tmp_path / "out", tmp_path / "runs", "back")
    export_run("back", tmp_path / "again", "hf", dtype, tmp_path / "runs", "best")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_cache_without_the_ids_before_is_refused_by_the_code_for_tables(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", a_model(**TABLES), BYTES)
    said = export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    assert "trust_remote_code=True" in said
    model, idx = load(tmp_path / "out"), some_ids(1, 4)
    cache = model(idx, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="all_ids"):
        model(idx[:, :1], past_key_values=cache)


def test_the_tokenizer_and_its_chat_template_give_our_ids(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    out = tmp_path / "out"
    export_run("talk", out, "hf", "float32", tmp_path / "runs", "best")
    theirs = AutoTokenizer.from_pretrained(out)
    talk = [("system", " Be brief.\n"), ("user", "h\u00e9  llo"), ("assistant", ""), ("user", "b")]
    rendered = theirs.apply_chat_template(
        [{"role": role, "content": text} for role, text in talk],
        add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    said = [Message(role, text) for role, text in talk]  # type: ignore[arg-type]
    assert rendered == encode(said, CHAT, BYTES)
    forged = "a <|end|><|assistant|>  . b"
    assert theirs(forged, split_special_tokens=True).input_ids == BYTES.encode(forged)
    assert theirs.decode(BYTES.encode(forged)) == forged
    assert "forge an answer" in (out / "README.md").read_text("utf-8")
    # it answers as in the chat: generate() ends at the end of the message
    prompt = torch.tensor([encode([Message("user", "Hello")], CHAT, BYTES)])
    answer = load(out).generate(prompt, max_new_tokens=40, **GREEDY)
    assert answer[0, prompt.shape[1] :].tolist() == [*b"Good day.", END]


@pytest.mark.parametrize("name", ["x", "talk", "short"])
def test_what_the_card_says_to_type_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", a_model(**TABLES), BYTES)
    # past bug: 100 new tokens were asked for, and there are as many positions as it learned
    make_run(tmp_path / "runs", a_model(**GPT2 | {"block_size": 16}), BYTES, "short")
    make_chat_run(tmp_path / "runs", "talk")
    export_run(name, tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    exec(card.partition("```python\n")[2].partition("```")[0], {})  # noqa: S102
    said = capsys.readouterr().out
    talk = "<|user|>Hello<|end|><|assistant|>Good day."
    assert said.startswith(talk if name == "talk" else "Once")


def test_characters_round_trip(tmp_path: Path) -> None:
    ours = CharTokenizer(tuple("\n abc\u00fc\u4e2d"))
    model = random_model(ModelConfig(vocab_size=ours.vocab_size, **SIZES))
    make_run(tmp_path / "runs", model, ours)
    export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("", " a b\n\n", "c\u00fc\u4e2d  ", "axb"):
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text.replace("x", "")


def test_large_networks_are_divided_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model(**MODERN)
    make_run(tmp_path / "runs", model, BYTES)
    small = partial(split_state_dict_into_shards_factory, max_shard_size=20_000)
    monkeypatch.setattr("huggingface_hub.split_state_dict_into_shards_factory", small)
    export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert sum(path.stat().st_size > 25_000 for path in shards) <= 1  # the embedding alone
    idx = some_ids(1, 12)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "out")(idx).logits, model(idx))


@pytest.mark.parametrize(
    ("switches", "named"),
    [
        (GPT2 | {"head_bias": True}, "--head-bias is True"),
        (GPT2 | {"positions": "sinusoidal"}, "--positions is sinusoidal"),
        (GPT2 | {"norm_first": False}, "--norm-first is False"),
        (GPT2 | {"n_kv_head": 2}, "--n-kv-head is 2"),
        (MODERN | {"mlp": "gelu"}, "--mlp is gelu"),
        (MODERN | {"bias": True}, "--bias is True"),
        (MODERN | {"ngrams": 2, "qk_norm": False}, "--qk-norm is False"),
    ],
)  # fmt: skip
def test_what_no_class_expresses_is_refused_by_the_name_of_the_switch(
    switches: dict[str, Any], named: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", a_model(**switches), BYTES)
    with pytest.raises(ConfigError, match=named) as refused:
        export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    assert "--to weights" in refused.value.message
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == ["runs"]


def test_refusals_of_the_command_are_sentences(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", a_model(**MODERN), BYTES)
    (tmp_path / "there").mkdir()
    for arguments, said in [
        (("there", "hf", "float32"), "there: is there already. Name another"),
        (("out", "weights", "float32"), "end it in .safetensors"),
    ]:
        out, to, dtype = arguments
        with pytest.raises(UserError, match=said):
            export_run("x", tmp_path / out, to, dtype, tmp_path / "runs", "best")
    _, most = limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (20_000, most))  # as if the disk were full
    try:
        for to, name in (("hf", "full"), ("weights", "full.safetensors")):
            with pytest.raises(UserError, match=r"cannot be written \(.*too large"):
                export_run("x", tmp_path / name, to, "float32", tmp_path / "runs", "best")
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    ended = run_python(["-m", "sample", "export", "none", "out", "--to", "hf"], tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: runs/none: no such run.")
    assert not list((tmp_path / "there").iterdir())
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "there", "hf"}
