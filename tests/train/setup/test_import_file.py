"""Files of nanoGPT and llm.c as runs: the same logits; and pickles that would run code do not."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from common.checkpoint import load_checkpoint, newest_valid
from common.errors import UserError
from common.tokenizer import CharTokenizer
from tests.tiny import prepare_text, words
from train.setup.import_folder import import_folder

CPU = torch.device("cpu")
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24}


class NanoBlock(nn.Module):
    """A block by the names and the formulas of nanoGPT's model.py."""

    def __init__(self, C: int, n_head: int, *, bias: bool) -> None:  # noqa: N803
        super().__init__()
        self.n_head = n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(C, 3 * C, bias=bias), "c_proj": nn.Linear(C, C, bias=bias)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(C, 4 * C, bias=bias), "c_proj": nn.Linear(4 * C, C, bias=bias)}
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        heads = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.n_head, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / math.sqrt(C // self.n_head)
        scores = scores.masked_fill(torch.ones(T, T).tril() == 0, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))  # type: ignore[no-any-return]


class NanoGPT(nn.Module):
    """The same of the network, whose head is tied."""

    def __init__(self, vocab_size: int, *, bias: bool) -> None:
        super().__init__()
        C = SIZES["n_embd"]  # noqa: N806
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, C),
                "wpe": nn.Embedding(SIZES["block_size"], C),
                "h": nn.ModuleList(
                    NanoBlock(C, SIZES["n_head"], bias=bias) for _ in range(SIZES["n_layer"])
                ),
                "ln_f": nn.LayerNorm(C, bias=bias),
            }
        )
        self.lm_head = nn.Linear(C, vocab_size, bias=False)
        wte: Any = self.transformer["wte"]
        self.lm_head.weight = wte.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, idx: Tensor) -> Tensor:
        net: Any = self.transformer
        x = net["wte"](idx) + net["wpe"](torch.arange(idx.shape[1]))
        for block in net["h"].children():
            x = block(x)
        return self.lm_head(net["ln_f"](x))  # type: ignore[no-any-return]


def save_nanogpt(path: Path, vocab_size: int, *, bias: bool, prefix: str = "") -> NanoGPT:
    """Save as nanoGPT's train.py does; ``prefix`` stands before the names of a compiled one."""
    torch.manual_seed(0)
    model = NanoGPT(vocab_size, bias=bias)
    args = SIZES | {"vocab_size": vocab_size, "bias": bias, "dropout": 0.2}
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    saved = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(), "model_args": args, "iter_num": 5,
        "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"},
    }  # fmt: skip
    torch.save(saved, path)
    return model.eval()


def assert_same_logits(run: Path, theirs: Any, n_ids: int) -> None:
    ours = load_checkpoint(newest_valid(run, "best"), CPU)
    idx = torch.randint(0, n_ids, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(idx)[..., :n_ids]
        assert expected.std() > 0.1
        found = ours.model.eval()(idx)[..., :n_ids]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_network_of_characters_has_its_logits_and_characters(
    bias: bool, tmp_path: Path
) -> None:
    characters = sorted(set(words(300)))
    theirs = save_nanogpt(tmp_path / "ckpt.pt", len(characters), bias=bias)
    meta: dict[str, Any] = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    meta["stoi"] = {character: i for i, character in enumerate(characters)}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    run = import_folder(
        str(tmp_path / "ckpt.pt"), tmp_path / "runs", "x", str(tmp_path / "meta.pkl")
    )
    assert_same_logits(run, theirs, len(characters))
    tokenizer = load_checkpoint(newest_valid(run, "best"), CPU).tokenizer
    assert tokenizer == CharTokenizer(tuple(characters))
    data = prepare_text(words(300), tmp_path)
    named = [data.path, run]  # that have the same vocabulary
    for name in named:
        again = import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "y", str(name))
        assert load_checkpoint(newest_valid(again, "best"), CPU).tokenizer == tokenizer


def test_nanogpts_compiled_network_of_gpt2s_ids_has_its_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    theirs = save_nanogpt(tmp_path / "ckpt.pt", 50_304, bias=False, prefix="_orig_mod.")
    run = import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "x")
    assert_same_logits(run, theirs, 50_257)
    config = load_checkpoint(newest_valid(run, "best"), CPU).model.config
    assert (config.vocab_size, config.padded_vocab_size) == (50_261, 50_304)


def write_llmc(path: Path, version: int) -> Any:
    """Write GPT2LMHeadModel as llm.c's write_model does, 50,257 ids in 50,304 rows."""
    torch.manual_seed(0)
    T, n_layer, n_head, C = (SIZES[n] for n in ("block_size", "n_layer", "n_head", "n_embd"))  # noqa: N806
    sizes = {"n_positions": T, "n_embd": C, "n_layer": n_layer, "n_head": n_head}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50_257, **sizes)).eval()
    dtype = torch.float32 if version == 3 else torch.bfloat16
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).to(dtype))
    state = model.state_dict()
    kinds = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    header = np.zeros(256, np.int32)
    header[:8] = 20_240_326, version, T, 50_257, n_layer, n_head, C, 50_304
    tensors = [
        F.pad(state["transformer.wte.weight"], (0, 0, 0, 47)),
        state["transformer.wpe.weight"],
    ]
    for kind in kinds:
        for part in ("weight", "bias"):
            for layer in range(n_layer):
                tensor = state[f"transformer.h.{layer}.{kind}.{part}"]
                # nn.Linear's are (out, in), transformers' Conv1D (in, out)
                tensors.append(tensor.T.contiguous() if tensor.dim() == 2 else tensor)
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    with path.open("wb") as file:
        file.write(header.tobytes())
        for tensor in tensors:
            file.write(tensor.to(dtype).flatten().view(torch.uint8).numpy().tobytes())
    return lambda idx: model(idx).logits


@pytest.mark.parametrize("version", [3, 5])
def test_llmcs_network_has_its_logits_and_a_cut_one_is_a_sentence(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    path = tmp_path / "gpt2.bin"
    theirs = write_llmc(path, version)
    assert_same_logits(import_folder(path, tmp_path / "runs", "x"), theirs, 50_257)
    whole = path.read_bytes()
    for spoilt, named in [
        (whole[:-1], "its header promises"),
        (whole[:500], "its header promises"),
        (whole + b"x", "its header promises"),
        (whole[:16] + b"\xff\xff\xff\x7f" + whole[20:], "its header promises"),  # of layers
        (whole[:4], "version 0"),
        (whole[:4] + b"\1" + whole[5:], "version 1"),
        (b"\0" + whole[1:], "neither a ckpt"),
        (b"", "neither a ckpt"),
    ]:
        path.write_bytes(spoilt)
        with pytest.raises(UserError, match=named):
            import_folder(path, tmp_path / "runs", "y")
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["x"]


class WritesAFile:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_does_not_and_is_one_sentence(tmp_path: Path) -> None:
    touched, ckpt, meta = tmp_path / "touched", tmp_path / "ckpt.pt", tmp_path / "meta.pkl"
    evil = WritesAFile(touched)
    good = save_nanogpt(ckpt, 5, bias=True)
    meta.write_bytes(pickle.dumps({"itos": evil, "stoi": {}}))
    with pytest.raises(UserError, match=r"--tokenizer .*meta.pkl: .* names \w+.system, .* not run"):
        import_folder(ckpt, tmp_path / "runs", "x", str(meta))
    for content in ({"model": good.state_dict(), "model_args": evil}, evil):
        torch.save(content, ckpt)
        with pytest.raises(UserError, match=r"it names \w+.system, which would run"):
            import_folder(ckpt, tmp_path / "runs", "x")
        ckpt.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="neither a ckpt"):
            import_folder(ckpt, tmp_path / "runs", "x")
    assert not touched.exists()
    assert not (tmp_path / "runs").exists()
    pickle.loads(pickle.dumps(evil))  # noqa: S301
    assert touched.exists()  # so it would have


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda saved: saved["model"].pop("transformer.ln_f.weight"), "cannot be imported"),
        (lambda saved: saved["model_args"].pop("bias"), "damaged, cut short, or of another kind"),
        (lambda saved: saved["model_args"].update(n_head=5), "divide evenly"),
        (lambda saved: saved["model_args"].update(block_size=25), "cannot be imported"),
        (lambda saved: saved.update(model=3), "damaged, cut short, or of another kind"),
        (lambda saved: saved["model"].update(x=3), "damaged, cut short, or of another kind"),
        (lambda saved: None, "ids, and does not say what they stand for. Pass --tokenizer"),
    ],
)
def test_what_is_no_ckpt_of_nanogpt_is_one_sentence(spoil: Any, named: str, tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", 9, bias=True)
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    spoil(saved)
    torch.save(saved, tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": list("abcdefghi")}))
    meta = "" if "--tokenizer" in named else str(tmp_path / "meta.pkl")
    with pytest.raises(UserError, match=named):
        import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "x", meta)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("itos", "named"),
    [
        (list("abcdefghijklm"), "another"),
        (["ab"] * 9, "does not list characters"), (5, "no len"),
        (["\ud800", *"bcdefghi"], "surrogates"),
    ],
)  # fmt: skip
def test_a_meta_of_other_ids_is_one_sentence(itos: Any, named: str, tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", 9, bias=True)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": itos}))
    with pytest.raises(UserError, match=named):
        import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "x", str(tmp_path / "meta.pkl"))


def test_a_vocabulary_that_cannot_be_read_is_what_is_named(tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", 9, bias=True)
    (tmp_path / "meta.pkl").write_text("hello", "utf-8")
    with pytest.raises(UserError) as raised:
        import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "x", str(tmp_path / "meta.pkl"))
    assert str(raised.value).startswith(f"--tokenizer {tmp_path / 'meta.pkl'}: ")
    assert "would run" not in str(raised.value)


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    characters = "abcdefghi"
    theirs = save_nanogpt(tmp_path / "ckpt.pt", len(characters), bias=True)
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    head = torch.randn(saved["model"]["lm_head.weight"].shape)
    saved["model"]["lm_head.weight"] = head
    torch.save(saved, tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": list(characters)}))
    theirs.lm_head.weight = torch.nn.Parameter(head)
    run = import_folder(tmp_path / "ckpt.pt", tmp_path / "runs", "x", str(tmp_path / "meta.pkl"))
    assert_same_logits(run, theirs, len(characters))
