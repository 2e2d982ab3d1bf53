"""The embedded default answers: its whole chain, as `make chat` runs it, by tokens, not minutes."""

from pathlib import Path

import pytest

from common.models.config import GenerateConfig
from sample.loaded_model import load_model
from tests.bench.answers import LEARNED_BY_HEART, ask, commands, run, score, val_losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a base model and of what became of it, with less than the minutes of the default."""
    folder = tmp_path_factory.mktemp("default")
    lengths = ["--tokens", "3000000"], ["--tokens", "5000000", *LEARNED_BY_HEART]
    for command in commands(*lengths):
        run(command, folder)
    unchanged = "--max-steps 1 --learning-rate 0 --matrix-lr 0 --table-lr 0 --weight-decay 0"
    run(f"train finetune --from base --data chats --run unchanged {unchanged}", folder)
    return folder / "runs"


def test_it_answers_in_the_words_of_the_documentation_and_ends(runs_dir: Path) -> None:
    model = load_model("base-chat", runs_dir, "latest", "cpu", "none")
    for temperature in (0.0, GenerateConfig().temperature):
        found = score(model, temperature=temperature)
        assert found.right >= 0.6
        assert found.by_hand >= 0.7
        assert found.ended >= 0.99


def test_held_out_answers_are_more_likely_than_to_the_base_model(runs_dir: Path) -> None:
    before, after = (list(val_losses(runs_dir / name)) for name in ("unchanged", "base-chat"))
    assert after[-1] <= 0.75 * before[-1]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Hello", "Hello!"),
        ("Who are you?", "small language model"),
        ("thanks!", "welcome"),
        ("What is the capital of Italy?", "I do not know"),
    ],
)
def test_small_talk_is_answered_as_it_was_learned(said: str, words: str, runs_dir: Path) -> None:
    model = load_model("base-chat", runs_dir, "latest", "cpu", "none")
    ((answer, ended),) = ask(model, [[said]])
    assert words in answer
    assert ended
