"""What AutoTokenizer makes of an exported folder, against the ids of the run's own vocabulary."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from sample.export.run import export_run
from tests.common.huggingface.hostile import hostile_strings
from tests.common.huggingface.test_tokenizer_json import KINDS, SHARED, vocabulary
from tests.sample.export.test_hf import make_run


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, Any]:
    ours, _ = vocabulary(request.param)
    shape = ARCHITECTURES["gpt2"] | {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 8}
    make_run(tmp_path / "runs", GPT(ModelConfig(vocab_size=ours.vocab_size, **shape)), ours)
    export_run("x", tmp_path / "out", "hf", "float32", tmp_path / "runs", "best")
    return ours, AutoTokenizer.from_pretrained(tmp_path / "out")


def assert_alike(both: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = both
    found = theirs(texts, split_special_tokens=True, verbose=False).input_ids
    for text, ids in zip(texts, found, strict=True):
        assert ids == ours.encode(text), text
        if not ours.missing(text):
            assert theirs.decode(ids) == text


def test_hostile_strings_have_the_same_ids(both: tuple[Tokenizer, Any]) -> None:
    assert_alike(both, hostile_strings(1, 2_000))


@pytest.mark.slow
def test_twenty_thousand_hostile_strings_and_all_real_texts_have_the_same_ids(
    both: tuple[Tokenizer, Any],
) -> None:
    assert_alike(both, hostile_strings(0, 20_000))
    files = [path for path in (SHARED / "data").rglob("*") if path.is_file()]
    if not files:
        pytest.skip("the folder of real data is not there: ../shared")
    for path in files:
        text = path.read_text("utf-8", errors="replace")
        assert_alike(both, [text[i : i + 10_000] for i in range(0, len(text), 10_000)])
