"""Which share of a text was made up, worked out by hand."""

import json
from pathlib import Path

import pytest

from common.files import write_json
from prepare.output.index import write_index
from tests.prepare.making import write_data
from tests.processes import assert_one_sentence, run_each
from tests.sample.conftest import ALPHABET, make_run

KNOWN = "abcdefghaabb"  # of 12 tokens, so that 8 and more of them make spans


def test_novelty_is_the_share_outside_the_spans(tmp_path: Path) -> None:
    rows = [[*ALPHABET.encode(text), ALPHABET.eot_id] for text in (f"hh{KNOWN}hh", "bbbbb", "c")]
    data = write_data(tmp_path / "data", {"train": rows, "val": []}, ALPHABET)
    write_index(data, lambda name, size: lambda n_bytes: None)
    for name in ("here", "gone"):
        run = make_run(tmp_path / "runs", name)
        learned = {"path": str(tmp_path / name.replace("here", "data")), "sha256": data.sha256}
        write_json(run / "config.json", {"format": 1, "init_from": None, "data": learned})
    (tmp_path / "known.txt").write_text(f"{KNOWN}{KNOWN[1:9]}\nfgh{KNOWN[2:]}")
    (tmp_path / "new.txt").write_text("hgfedcba" * 3 + KNOWN[:7])
    score = ["sample", "score", "known.txt", "new.txt", "--novelty"]
    ended = run_each(
        {
            "table": [*score, "--run", "here"],
            "json": [*score, "--run", "here", "--json"],
            "gone": [*score, "--run", "gone"],
        },
        tmp_path,
    )
    assert ended["table"].returncode == 0, ended["table"].stderr
    shares = [line.split()[-1] for line in ended["table"].stdout.splitlines()]
    assert shares == ["novelty", "11.8%", "100.0%", "53.8%"]  # of 34, 31 and all 65 tokens
    spans = [json.loads(line) for line in ended["json"].stdout.splitlines()]
    assert [(each["first"], each["last"], each["text"]) for each in spans if "first" in each] == [
        (0, 12, KNOWN), (24, 34, KNOWN[2:]), (12, 20, KNOWN[1:9]),
    ]  # fmt: skip
    named = {each["passages"][0]["name"] for each in spans if "first" in each}
    assert named == {"data, document 1"}
    novelties = [each["novelty"] for each in spans if "novelty" in each]
    assert novelties == pytest.approx([4 / 34, 1, 35 / 65])
    assert_one_sentence(ended["gone"], "--novelty needs the training text", "gone: no such folder")
