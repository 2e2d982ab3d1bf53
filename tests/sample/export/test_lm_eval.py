"""lm-evaluation-harness over an exported folder, over sample serve, and sample score: one number.

Its tasks are made here: pages whose bits a byte are counted, and questions of four answers.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import save_checkpoint
from common.files import write_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.run_dir import new_run
from tests.processes import run_python
from tests.sample.serving import serving
from tests.tiny import SENTENCE, prepare_text, random_model, words

CONTEXT = 64
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: {kind}
target_delimiter: ""
"""
PAGES = 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n'
QUESTIONS = "doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\n"


def write_task(name: str, kind: str, text: str, records: list[dict[str, Any]]) -> None:
    Path(f"{name}.yaml").write_text(TASK.format(name=name, kind=kind) + text, encoding="utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    Path(f"{name}.jsonl").write_text(lines, encoding="utf-8")


def harness(folder: Path, model: str, arguments: str) -> dict[str, Any]:
    """Return what the harness found, by task and metric."""
    command = f"-m lm_eval --model {model} --model_args {arguments} --tasks pages,books,questions"
    command += f" --include_path . --output_path {model}"
    ended = run_python(command.split(), folder)
    assert ended.returncode == 0, ended.stderr
    (results,) = (folder / model).rglob("results*.json")
    found: dict[str, Any] = json.loads(results.read_bytes())["results"]
    return found


def scores(folder: Path, texts: list[str], *options: str) -> list[dict[str, Any]]:
    """Return what sample score says of each text, and of all together."""
    names = [f"scored-{number:03}.txt" for number in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    ended = run_python(["-m", "sample", "score", *names, "--json", *options], folder)
    return list(map(json.loads, ended.stdout.splitlines()))


@pytest.mark.slow
def test_the_harness_finds_what_score_finds_of_the_folder_and_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HF_HOME", str(tmp_path / "hf")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    tokenizer = prepare_text(words(3_000), tmp_path, tokenizer="bpe").tokenizer()
    switches: dict[str, Any] = {"mlp": "relu2", "ngrams": 3, "ngram_rows": 97}  # tiny's
    shape: dict[str, Any] = {"block_size": CONTEXT, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, **ARCHITECTURES["modern"] | switches | shape
    )
    run = new_run(tmp_path / "runs", "mine")
    write_json(run / "config.json", {"format": 1})
    save_checkpoint(run, 1, random_model(config), {}, {"progress": {"n_tokens": 10}}, tokenizer)

    drawn = random.Random(0)
    pages = [words(drawn.randint(1, 10), seed).strip() for seed in range(20)]
    books = [words(drawn.randint(100, 300), seed) for seed in range(5)]
    questions: list[dict[str, Any]] = []
    for seed in range(30):
        choices = [" " + word for word in drawn.sample(SENTENCE.split(), 4)]
        record = {"question": words(6, seed).strip(), "choices": choices}
        questions.append(record | {"answer": drawn.randrange(4)})
    write_task("pages", "loglikelihood_rolling", PAGES, [{"text": text} for text in pages])
    write_task("books", "loglikelihood_rolling", PAGES, [{"text": text} for text in books])
    write_task("questions", "multiple_choice", QUESTIONS, questions)

    ended = run_python(["-m", "sample", "export", "mine", "out", "--to", "hf"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = [harness(tmp_path, "hf", "pretrained=out,trust_remote_code=True")]
    with serving(tmp_path, "mine") as server:
        where = f"base_url={server.url}/v1/completions,tokenizer=out,max_length={CONTEXT}"
        found.append(harness(tmp_path, "local-completions", f"model=mine,{where}"))

    bits = [scores(tmp_path, pages)[-1]["bpb"]]
    bits.append(scores(tmp_path, books, "--stride", str(CONTEXT))[-1]["bpb"])
    answered = [each["question"] + choice for each in questions for choice in each["choices"]]
    nats = [text["loss"] * text["tokens"] for text in scores(tmp_path, answered)[:-1]]
    likeliest = 0
    for number, each in enumerate(questions):
        of_four = nats[4 * number : 4 * number + 4]
        likeliest += of_four.index(min(of_four)) == each["answer"]
    assert 0 < likeliest < len(questions)
    for results in found:
        assert results["pages"]["bits_per_byte,none"] == pytest.approx(bits[0], abs=1e-4)
        # windows of it end elsewhere: a token before or two
        assert results["books"]["bits_per_byte,none"] == pytest.approx(bits[1], rel=1e-2)
        assert results["questions"]["acc,none"] == likeliest / len(questions)
