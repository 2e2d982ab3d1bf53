"""One file of weights: what sample says of it and from it is what it says of the run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from common.files import sha256_of
from common.models.config import GenerateConfig
from sample.export.run import export_run
from sample.loaded_model import banner, load_model
from sample.server.config import ServeConfig
from sample.server.run import describe_model
from sample.text.prompt import CHAT, RAW
from tests.processes import run_python
from tests.sample.chats import make_chat_run, toy_chat
from tests.sample.conftest import CIRCLE, make_run


def test_sample_runs_from_the_file_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "circle")
    write = ["export", "circle", "there/w.safetensors", "--to", "weights", "--dtype", "bfloat16"]
    ended = run_python(["-m", "sample", *write], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "python -m sample chat there/w.safetensors" in ended.stderr
    (tmp_path / "runs").rename(tmp_path / "gone")
    command = ["generate", "there/w.safetensors", "--prompt", "a", "--max-new-tokens", "12"]
    generated = run_python(["-m", "sample", *command, "--temperature", "0"], tmp_path)
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.rstrip() == (CIRCLE * 2)[:13]
    assert "val loss 1.2500" in generated.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_known_of_a_run_that_answers_goes_along(dtype: str, tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    before = load_model("talk", tmp_path / "runs", "best", "cpu", "none")
    path = tmp_path / "w.safetensors"
    export_run("talk", path, "weights", dtype, tmp_path / "runs", "best")
    after = load_model(str(path), tmp_path / "none", "best", "cpu", "none")
    assert after.info.is_chat
    for template in (CHAT, RAW):
        said = banner(before.info, template).replace(str(before.info.folder), str(path))
        assert banner(after.info, template) == said
    assert after.tokenizer == before.tokenizer
    served = describe_model(after, CHAT, GenerateConfig(), ServeConfig())
    assert (served.name, served.fingerprint) == ("w", f"quern-{sha256_of(path)[:12]}")
    assert served.training_text.notices == [f"{path}: does not say what it learned from."]
    with torch.inference_mode():
        for name, ours in toy_chat().state_dict().items():
            torch.testing.assert_close(
                load_file(path)[name].float(),
                ours.to(getattr(torch, dtype)).float(),
                atol=0,
                rtol=0,
            )


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "circle")
    path = tmp_path / "w.safetensors"
    export_run("circle", path, "weights", "float32", tmp_path / "runs", "best")
    foreign = tmp_path / "runs" / "circle" / "step-00000010" / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", foreign.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            load_model(str(path), tmp_path, "best", "cpu", "none")
    path.write_bytes(whole)
    with safe_open(str(path), framework="pt") as file:
        said = json.loads(file.metadata()["quern"])
    assert said["state"]["step"] == 10
    del said["info"]
    save_file(load_file(path), path, {"quern": json.dumps(said)})
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_model(str(path), tmp_path, "best", "cpu", "none")
    outside = tmp_path / "outside.json"
    said |= {"info": {}, "state": said["state"] | {"tokenizer": {"file": f"../../..{outside}"}}}
    save_file(load_file(path), path, {"quern": json.dumps(said)})
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_model(str(path), tmp_path, "best", "cpu", "none")
    assert not outside.exists()
