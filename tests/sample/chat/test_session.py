"""A conversation that goes on: that it never outgrows the context, and what taking back means."""

from dataclasses import replace

import pytest

from common.errors import ConfigError
from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig, ModelConfig
from common.models.gpt import GPT
from common.settings import SEEDS_END
from common.tokenizer import CharTokenizer
from sample.chat.session import Chat
from sample.chat.terminal import run_line
from sample.text.prompt import TURNS, Message
from tests.sample.conftest import ALPHABET, CIRCLE, round_and_round
from tests.tiny import byte_tokenizer, random_model, successor_model

LIKELIEST = GenerateConfig(max_new_tokens=4, temperature=0)
BYTES = byte_tokenizer()
ROUNDS = CIRCLE * 3


def byte_model(block_size: int) -> GPT:
    return random_model(
        ModelConfig(
            vocab_size=BYTES.vocab_size, block_size=block_size, n_layer=1, n_embd=16, n_head=2
        )
    )


def byte_decoder(block_size: int) -> Decoder:
    return Decoder(make_backend(byte_model(block_size)), BYTES, n_rows=1)


def new_chat(config: GenerateConfig = LIKELIEST) -> tuple[Chat, list[str]]:
    notices: list[str] = []
    decoder = Decoder(make_backend(round_and_round(forwards=True)), ALPHABET, n_rows=1)
    return Chat(decoder, config, notify=notices.append), notices


def ask(chat: Chat, text: str) -> str:
    return "".join(chat.reply(text))


def stats_line(chat: Chat) -> str:
    """Return what /stats says."""
    said: list[str] = []
    before, chat.notify = chat.notify, said.append
    run_line(chat, "/stats")
    chat.notify = before
    return said[0]


def test_an_answer_continues_the_prompt() -> None:
    chat, notices = new_chat()
    assert ask(chat, "cd") == "cdefgh"
    assert chat.messages == [Message("user", "cd"), Message("assistant", "efgh")]
    assert notices == []


def test_the_model_sees_the_turns_before() -> None:
    config = GenerateConfig(max_new_tokens=20, temperature=0)
    told, not_told = (Chat(byte_decoder(block_size=256), config) for _ in range(2))
    for text in ("one", "two"):
        ask(told, text)
    assert ask(told, "again") != ask(not_told, "again")


def test_that_turns_are_dropped_is_said_once_and_then_in_the_figures() -> None:
    chat, notices = new_chat()
    for text in ("a", "b"):
        ask(chat, text)  # turns of 6 ids; 12 of 16 are for turns and prompt
    assert notices == []
    for text in ("cdefg", "a", "b"):
        ask(chat, text)
    assert notices == ["The oldest turn had no room in the context."]
    assert "Context: 11 of 16 tokens, 2 of 5 turns." in stats_line(chat)


def test_a_new_conversation_may_say_it_again() -> None:
    chat, notices = new_chat()
    for _ in range(2):
        for _ in range(5):
            ask(chat, "a")
        run_line(chat, "/reset")
    assert len([notice for notice in notices if "oldest" in notice]) == 2


def test_a_prompt_ten_times_the_context_is_cut_at_its_beginning_and_it_is_said() -> None:
    chat, notices = new_chat()
    prompt = "h" * 157 + "abc"
    assert ask(chat, prompt) == prompt + "defg"
    assert notices == ["The first 148 tokens of the last turn had no room in the context."]
    assert ask(chat, "a") == "abcde"


def test_a_system_text_without_room_is_said() -> None:
    chat, notices = new_chat()
    chat.messages = [Message("system", "abcdefgh")]
    assert ask(chat, "abcdef") == "abcdefghab"
    assert notices == ["The system text had no room in the context."]


def test_characters_that_the_vocabulary_lacks_are_named_and_left_out() -> None:
    chat, notices = new_chat()
    assert ask(chat, "a\u00fcbx\u00fc") == "a\u00fcbx\u00fccdef"
    assert notices == ["The vocabulary has no '\u00fc', 'x': left out of the prompt."]
    assert ask(chat, "xyz") == "xyzabcd"  # of the newline before, nothing else being left


def test_the_same_prompt_gets_another_answer_but_a_new_chat_the_same() -> None:
    config = GenerateConfig(max_new_tokens=8, temperature=1.0, seed=3)

    def answers() -> list[str]:
        chat, found = Chat(byte_decoder(block_size=16), config), []
        for _ in range(3):
            found.append(ask(chat, "abc"))
            chat.messages = []  # what is seen is the same
        return found

    first = answers()
    assert len(set(first)) == 3
    assert answers() == first


def test_seeds_go_on_from_0_after_the_largest() -> None:
    config = GenerateConfig(max_new_tokens=8, temperature=5.0, seed=SEEDS_END - 1)
    chat, _ = new_chat(config)
    answers = [ask(chat, "c"), ask(chat, "c")]
    chat.messages = []
    for seed, answer in zip((SEEDS_END - 1, 0), answers, strict=True):
        begun, _ = new_chat(replace(config, seed=seed))
        begun.messages = list(chat.messages)
        assert ask(begun, "c") == answer
        chat.messages = begun.messages


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came() -> None:
    chat, _ = new_chat(replace(LIKELIEST, max_new_tokens=1000))
    shown = ""
    for piece in chat.reply("a"):
        shown += piece
        if len(shown) == 4:
            chat.stop()
    assert shown == "abcd"
    assert chat.messages == [Message("user", "a"), Message("assistant", "bcd", stopped=True)]
    assert ask(replaced(chat), "a") == "abcde"  # the next is not stopped


def replaced(chat: Chat) -> Chat:
    chat.config = LIKELIEST
    return chat


def test_an_answer_that_nobody_reads_on_is_kept_as_far_as_it_came() -> None:
    chat, _ = new_chat()
    answer = chat.reply("a")
    assert [next(answer), next(answer), next(answer)] == ["a", "b", "c"]
    answer.close()
    assert chat.messages[-1] == Message("assistant", "bc", stopped=True)


def test_what_is_asked_but_never_begun_changes_nothing() -> None:
    chat, _ = new_chat()
    chat.reply("a").close()
    assert chat.messages == []


SPEAKERS = CharTokenizer(tuple(sorted(set("\nUser: Ait.on!"))))


def script_model(script: str) -> GPT:
    """Return a network that, after "Assistant:", writes a text whose characters are distinct."""
    scores = {a: {b: 50.0} for a, b in zip(":" + script, script + "!", strict=True)}
    return successor_model(SPEAKERS, scores)


def test_an_answer_ends_at_the_next_speaker_who_is_not_shown() -> None:
    # "!" follows itself, so that without the stop it would go on to max_new_tokens
    config = GenerateConfig(max_new_tokens=40, temperature=0)
    decoder = Decoder(make_backend(script_model(" t.\nUser")), SPEAKERS, n_rows=1)
    chat = Chat(decoder, config, template=replace(TURNS, stops=("\nUse",)))
    assert ask(chat, "to") == "t."
    assert chat.messages[-1] == Message("assistant", "t.")
    chat.template = replace(TURNS, stops=())
    assert "User" in ask(chat, "to")


@pytest.mark.parametrize("max_new_tokens", [1, 40, 100])
def test_five_hundred_turns_at_a_context_of_64(max_new_tokens: int) -> None:
    config = GenerateConfig(max_new_tokens=max_new_tokens, temperature=1.0)
    notices: list[str] = []
    chat = Chat(byte_decoder(block_size=64), config, template=TURNS, notify=notices.append)
    n_turns = 500 if max_new_tokens == 1 else 8  # its length changes only how soon it is full
    for turn in range(n_turns):
        ask(chat, f"turn {turn}")
        assert chat.stats is not None
        assert len(chat.stats[0].ids) <= 64 - min(max_new_tokens, 32)
    assert len(chat.messages) == 2 * n_turns
    assert len([notice for notice in notices if "oldest" in notice]) == 1


def test_five_hundred_turns_are_answered_from_what_is_seen() -> None:
    chat, _ = new_chat(replace(LIKELIEST, max_new_tokens=2))
    for turn in range(500):
        start = ROUNDS[turn % 8 :]
        prompt = start[: 1 + turn % 13]
        assert ask(chat, prompt) == prompt + (ROUNDS * 9)[turn % 8 + len(prompt) :][:2]


def test_the_smallest_context_still_talks() -> None:
    chat = Chat(byte_decoder(block_size=1), LIKELIEST)
    for _ in range(3):
        ask(chat, "abc")
    assert len(chat.messages) == 6


def test_the_figures_of_an_answer() -> None:
    chat, _ = new_chat()
    with pytest.raises(ConfigError, match="No answer yet"):
        stats_line(chat)
    ask(chat, "abc")
    assert stats_line(chat).startswith("4 tokens in ")
    assert stats_line(chat).endswith("tokens/s. Context: 7 of 16 tokens, 1 of 1 turns.")
    assert chat.stats is not None
    chat.stats = (chat.stats[0], 50, 0.4)
    assert stats_line(chat).startswith("50 tokens in 0.40 s, 125 tokens/s.")
    chat.config = replace(LIKELIEST, max_new_tokens=100)
    ask(chat, "abc")  # slides: it cannot use more than there is
    assert "Context: 16 of 16 tokens" in stats_line(chat)
