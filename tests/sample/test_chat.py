"""The conversation: what the model sees of it, and that it never outgrows the context."""

from dataclasses import replace

import pytest

from common.config import GenerateConfig, ModelConfig
from common.model import GPT
from sample.chat import Conversation, banner
from tests.sample.conftest import ALPHABET, CIRCLE, round_and_round
from tests.tiny import byte_tokenizer, random_model

LIKELIEST = GenerateConfig(max_new_tokens=4, temperature=0)
BYTES = byte_tokenizer()
ROUNDS = CIRCLE * 3


def byte_model(block_size: int) -> GPT:
    return random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=block_size, n_embd=16, n_head=2)
    )


def conversation(config: GenerateConfig = LIKELIEST) -> Conversation:
    return Conversation(round_and_round(forwards=True), ALPHABET, config)  # a context of 16


def ask(talk: Conversation, text: str) -> tuple[str, list[str]]:
    notices, reply = talk.reply(text)
    return "".join(reply), notices


def test_a_reply_continues_the_prompt() -> None:
    assert ask(conversation(), "cd") == ("efgh", [])


def test_turns_are_kept_whole_with_a_newline_between() -> None:
    talk = conversation()
    ask(talk, "a")
    ask(talk, "f")
    assert [ALPHABET.decode_bytes(turn) for turn in talk.turns] == [b"abcde\n", b"fghab\n"]


def test_the_model_sees_the_turns_before() -> None:
    model = byte_model(block_size=64)
    config = GenerateConfig(max_new_tokens=20, temperature=0)
    told, not_told = Conversation(model, BYTES, config), Conversation(model, BYTES, config)
    for text in ("one", "two"):
        ask(told, text)
    assert ask(told, "again") != ask(not_told, "again")


def test_the_oldest_turns_go_first_and_it_is_said() -> None:
    talk = conversation()
    for text in ("a", "b"):
        assert ask(talk, text)[1] == []  # turns of 6 ids; 12 of 16 are for turns and prompt
    reply, notices = ask(talk, "cdefg")
    assert reply == "habc"
    assert notices == [
        "The context has no room for the whole conversation: of its 2 turns the last 1 stay."
    ]
    assert ALPHABET.decode_bytes(talk.turns[0]) == b"bcdef\n"
    notices, rest = talk.reply("abcdefghabcd")  # exactly what fits: nothing is cut, all turns go
    assert notices == [
        "The context has no room for the whole conversation: of its 2 turns the last 0 stay."
    ]
    assert "".join(rest) == "efgh"


def test_a_prompt_ten_times_the_context_is_cut_at_its_beginning_and_it_is_said() -> None:
    talk = conversation()
    reply, notices = ask(talk, "h" * 157 + "abc")
    assert reply == "defg"
    assert notices == [
        "The prompt has 160 tokens, and 12 fit into the context beside the reply: "
        "the first 148 were cut off."
    ]
    assert ALPHABET.decode_bytes(talk.turns[0]) == b"hhhhhhhhhabcdefg\n"


def test_a_long_reply_leaves_the_prompt_half_of_the_context() -> None:
    talk = conversation(replace(LIKELIEST, max_new_tokens=100))
    reply, notices = ask(talk, "abcdefgh" * 2)
    assert reply == ("abcdefgh" * 13)[:100]
    assert notices[0].startswith("The prompt has 16 tokens, and 8 fit")


def test_characters_that_the_vocabulary_lacks_are_named_and_left_out() -> None:
    talk = conversation()
    reply, notices = ask(talk, "a\u00fcbx\u00fc")
    assert reply == "cdef"
    assert notices == ["The vocabulary has no '\u00fc', 'x': left out of the prompt."]


def test_a_prompt_of_which_nothing_is_left_begins_a_document() -> None:
    assert ask(conversation(), "xyz")[0] == "abcd"


def test_the_same_prompt_gets_another_reply_but_a_new_conversation_the_same() -> None:
    model = byte_model(block_size=16)
    config = GenerateConfig(max_new_tokens=8, temperature=1.0, seed=3)

    def two_replies() -> list[str]:
        talk = Conversation(model, BYTES, config)
        replies = []
        for _ in range(2):
            talk.turns.clear()  # what is seen is the same
            replies.append(ask(talk, "abc")[0])
        return replies

    first = two_replies()
    assert first[0] != first[1]
    assert two_replies() == first


@pytest.mark.parametrize("max_new_tokens", [1, 5, 40])
def test_five_hundred_turns_fit_a_context_of_sixteen(max_new_tokens: int) -> None:
    config = replace(LIKELIEST, max_new_tokens=max_new_tokens)
    talk = conversation(config)
    for turn in range(500):
        start = ROUNDS[turn % 8 :]
        prompt = start[: 1 + turn % 13]
        expected = (ROUNDS * 9)[turn % 8 + len(prompt) :][:max_new_tokens]
        assert ask(talk, prompt)[0] == expected
        assert sum(map(len, talk.turns[:-1])) <= 16


def test_the_smallest_context_still_talks() -> None:
    model = byte_model(block_size=1)
    talk = Conversation(model, BYTES, LIKELIEST)
    for _ in range(3):
        _, reply = talk.reply("abc")
        list(reply)
    assert len(talk.turns) == 1


def test_the_banner_says_what_one_talks_to() -> None:
    lines = banner("runs/quern/step-00000500", 500, 1_234_567, 1.2345).splitlines()
    assert lines[0] == "runs/quern/step-00000500: step 500, 1,234,567 tokens read, val loss 1.2345."
    assert lines[1].startswith("This is a base model: it does not answer, it continues the text")
    assert "val loss not measured" in banner("runs/quern/step-00000500", 500, 1, None)
