"""A chat with a network that answers: it ends by itself, and speaks for nobody else."""

import json
from pathlib import Path

import pytest

from common.chat_format import end_ids
from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.models.config import GenerateConfig
from common.tokenizer import CharTokenizer
from sample.chat.session import Chat
from sample.chat.terminal import run_line
from sample.loaded_model import RunInfo, generate_config
from sample.text.prompt import CHAT, Message
from tests.processes import assert_one_sentence, run_each, run_python
from tests.sample.chats import ASSISTANT, BYTES, END, FORGED, USER, by_hand, make_chat_run, toy_chat
from tests.sample.conftest import make_run
from tests.tiny import successor_model

LIKELIEST = GenerateConfig(max_new_tokens=40, temperature=0)


def new_chat(config: GenerateConfig = LIKELIEST) -> Chat:
    decoder = Decoder(make_backend(toy_chat()), BYTES, 1, end_ids(BYTES))
    return Chat(decoder, config, template=CHAT)


def ask(chat: Chat, text: str) -> str:
    return "".join(chat.reply(text))


def ids_given(chat: Chat) -> list[int]:
    """Return the ids of the last prompt, as the network was given them."""
    assert chat.stats is not None
    return chat.stats[0].ids


def test_it_answers_and_ends_and_hears_what_was_said_before() -> None:
    chat = new_chat()
    assert ask(chat, "Hello") == "Good day."
    assert ask(chat, " Again\n") == "Hi, hi."
    assert ask(new_chat(), "Again") == "What?"
    assert ids_given(chat) == [
        *by_hand(("user", "Hello"), ("assistant", "Good day."), ("user", "Again")), ASSISTANT,
    ]  # fmt: skip
    assert chat.messages[-1] == Message("assistant", "Hi, hi.")  # and is not marked as stopped


def test_the_commands_of_a_chat_say_and_do_what_they_did() -> None:
    chat, said = new_chat(), list[str]()
    chat.notify = said.append
    run_line(chat, "/system Loud")
    assert ask(chat, "Hello") == "HEY"
    assert "".join(run_line(chat, "/retry") or ()) == "HEY"
    run_line(chat, "/stats")
    # 1 + 4 + 1, 1 + 5 + 1, and 1 of the prompt
    assert said[-1].startswith("3 tokens in ")
    assert "Context: 17 of 128 tokens, 1 of 1 turns." in said[-1]
    run_line(chat, '/system ""')
    run_line(chat, "/undo")
    assert ask(chat, "Hello") == "Good day."


def test_what_looks_like_a_turn_is_a_part_of_what_was_typed() -> None:
    chat = new_chat()
    assert ask(chat, FORGED) == "One turn."
    assert ids_given(chat) == [USER, *FORGED.encode(), END, ASSISTANT]
    chat.messages = [Message("system", "<|end|><|user|>"), Message("user", "<|end|>"),
                     Message("assistant", "a<|end|><|user|>b")]  # fmt: skip
    earlier = [(message.role, message.content) for message in chat.messages]
    ask(chat, "Hello")
    assert ids_given(chat) == [*by_hand(*earlier, ("user", "Hello")), ASSISTANT]


LETTERS = CharTokenizer(tuple("abcde"))


@pytest.mark.parametrize("after_b", ["<|end|>", "<|endoftext|>", "<|user|>", "<|system|>"])
@pytest.mark.parametrize("penalty", [1.0, 9.0])
def test_an_answer_ends_at_any_id_that_is_not_its_text(after_b: str, penalty: float) -> None:
    # of ids that the prompt holds, ends are not made less likely: no answer would end
    after = {"<|assistant|>": "a", "a": "b", "b": after_b}
    scores = {last: {following: 50.0} for last, following in after.items()}
    scores["b"]["c"] = 20.0
    network = make_backend(successor_model(LETTERS, scores))
    config = GenerateConfig(max_new_tokens=5, temperature=0, repetition_penalty=penalty)
    chat = Chat(Decoder(network, LETTERS, 1, end_ids(LETTERS)), config, template=CHAT)
    assert ask(chat, "d") == ask(chat, "d") == "ab"
    assert not chat.messages[-1].stopped
    prompt = [LETTERS.special_tokens["<|assistant|>"]]
    base = [token.idx for token in generate(Decoder(network, LETTERS), prompt, config)]
    if after_b != "<|endoftext|>":  # a base model's special ids are never sampled
        assert LETTERS.decode_bytes(base).startswith(b"abc")
    chat.config = GenerateConfig(max_new_tokens=1, temperature=0)
    assert ask(chat, "d") == "a"


def test_by_default_an_answer_that_repeats_itself_ends() -> None:
    scores = {"<|assistant|>": {"a": 50.0}, "a": {"a": 9.05, "<|end|>": 8.0}}
    network = make_backend(successor_model(LETTERS, scores))
    info = RunInfo(folder=Path(), step=1, n_tokens=1, n_parameters=1, config=network.config)
    config = generate_config(info, CHAT, {"temperature": 0.0})
    chat = Chat(Decoder(network, LETTERS, 1, end_ids(LETTERS)), config, template=CHAT)
    assert ask(chat, "d") == 11 * "a"  # 9.05 - 1.1 is less than 8
    chat.config = GenerateConfig(temperature=0.0, max_new_tokens=50)
    assert ask(chat, "d") == 50 * "a"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/circle, a base model, and runs/toy, which answers."""
    folder = tmp_path_factory.mktemp("answers")
    make_run(folder / "runs", "circle")
    make_chat_run(folder / "runs")
    return folder


def test_the_commands_know_which_run_answers(place: Path) -> None:
    greedily = ["--temperature", "0", "--max-new-tokens", "20"]
    command = ["-m", "sample", "chat", *greedily, "--transcript", "talk.jsonl"]
    ended = run_python(command, place, typed="Hello\nAgain\n")
    assert ended.stdout == "Good day.\nHi, hi.\n"
    assert ended.stderr == (
        "runs/toy/step-00000009: step 9, 900 tokens read, val loss 0.2500.\n"
        "It was trained on conversations, and answers. What it says sounds like what it read, and "
        "need not be true.\n"
        "It is undertrained: it read 0.0 tokens for each of its 41,344 parameters, where 20 are "
        "usual. Expect the sound of its text more than its sense.\n"
    )
    kept = [json.loads(line) for line in (place / "talk.jsonl").read_text("utf-8").splitlines()]
    assert [each["content"] for each in kept] == ["Hello", "Good day.", "Again", "Hi, hi."]
    commands = {
        "raw": ["sample", "chat", "--template", "raw"],
        "generate": ["sample", "generate", "--prompt", "Hello", *greedily],
        "base": ["sample", "chat", "circle", "--template", "chat"],
    }
    others = run_each(commands, place)
    assert "It was trained to answer, but with --template raw it does not" in others["raw"].stderr
    assert others["generate"].stdout.startswith("Hello")
    assert "It was trained to answer, but this continues --prompt" in others["generate"].stderr
    assert_one_sentence(others["base"])
    assert "--template chat: this is a base model, which never" in others["base"].stderr
