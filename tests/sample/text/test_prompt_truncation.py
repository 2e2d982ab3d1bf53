"""Whole turns, as many as fit: held against trying every number of them."""

from hypothesis import given
from hypothesis import strategies as st

from sample.text.prompt import RAW, TURNS, Message, Template, build_prompt, render, split_turns
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()  # an id a byte, so that the text of ids can be told


def seen(talk: list[Message], template: Template, block_size: int, max_new_tokens: int) -> str:
    prompt = build_prompt(
        talk,
        template=template,
        tokenizer=BYTES,
        block_size=block_size,
        max_new_tokens=max_new_tokens,
    )
    assert len(prompt.ids) <= block_size - min(max_new_tokens, block_size // 2)
    return BYTES.decode_bytes(prompt.ids).decode()


def conversation(n_turns: int, system: str = "") -> list[Message]:
    talk = [Message("system", system)] if system else []
    for turn in range(n_turns):
        talk += [Message("user", f"q{turn}"), Message("assistant", f"a{turn}")]
    return [*talk, Message("user", "last")]


def test_all_is_seen_while_it_fits() -> None:
    assert seen(conversation(2), RAW, 64, 8) == "q0a0\nq1a1\nlast"


def test_the_oldest_turns_go_first_and_whole() -> None:
    # turns of 5 bytes, a prompt of 4: 14 are needed for all
    assert seen(conversation(2), RAW, 22, 8) == "q0a0\nq1a1\nlast"
    assert seen(conversation(2), RAW, 21, 8) == "q1a1\nlast"
    assert seen(conversation(2), RAW, 16, 8) == "last"


def test_the_system_text_stays_before_the_turns() -> None:
    assert seen(conversation(9, "sys"), RAW, 26, 8) == "sys\nq7a7\nq8a8\nlast"


def test_a_system_text_beyond_half_of_the_room_goes_before_the_prompt_is_cut() -> None:
    prompt = build_prompt(
        conversation(1, "x" * 40),
        template=RAW, tokenizer=BYTES, block_size=64, max_new_tokens=22,
    )  # fmt: skip
    assert (prompt.system_dropped, prompt.n_cut, prompt.n_dropped) == (True, 0, 0)
    assert BYTES.decode_bytes(prompt.ids) == b"q0a0\nlast"


def test_a_prompt_too_long_loses_its_beginning_but_not_its_speaker() -> None:
    talk = [*conversation(3, "sys"), Message("user", "0123456789" * 60)]
    prompt = build_prompt(talk, template=TURNS, tokenizer=BYTES, block_size=64, max_new_tokens=14)
    text = BYTES.decode_bytes(prompt.ids).decode()
    # 50 of 64: the system text 5, "User:" 5, "\nAssistant:" 11; 29 are left for the words
    assert text == "sys\n\nUser:1234567890123456789" + "0123456789\nAssistant:"
    assert (prompt.n_turns, prompt.n_dropped) == (5, 4)
    assert prompt.n_cut == 6 + 600 + 1 + 10 - 45


def test_a_reply_of_any_length_leaves_the_prompt_half_of_the_context() -> None:
    talk = [Message("user", "x" * 999)]
    for block_size, max_new_tokens, room in ((128, 200, 64), (128, 8, 120), (1, 200, 1)):
        assert len(seen(talk, RAW, block_size, max_new_tokens)) == room


def test_a_turn_begins_with_each_message_of_the_user() -> None:
    a, b = Message("user", "a"), Message("assistant", "b")
    system = Message("system", "s")
    assert split_turns([]) == ([], [])
    assert split_turns([system, system, b, a, a, b, system]) == (
        [system, system],
        [[b], [a], [a, b, system]],
    )


messages = st.lists(
    st.builds(
        Message,
        st.sampled_from(["user", "assistant", "system"]),
        st.text("ab\u00fc\n", max_size=9),
    ),
    max_size=8,
)


@given(messages, st.integers(1, 80), st.integers(1, 60), st.sampled_from([RAW, TURNS]))
def test_what_fits_is_the_most_of_the_last_turns_that_do(
    talk: list[Message], block_size: int, max_new_tokens: int, template: Template
) -> None:
    prompt = build_prompt(
        talk,
        template=template,
        tokenizer=BYTES,
        block_size=block_size,
        max_new_tokens=max_new_tokens,
    )
    system, turns = split_turns(talk)
    room = block_size - min(max_new_tokens, block_size // 2)
    candidates = [
        render([*system, *(message for turn in turns[first:] for message in turn)], template)
        for first in range(max(1, len(turns)))
    ]
    fitting = [text for text in candidates if len(text.encode()) <= room]
    if fitting:
        assert BYTES.decode_bytes(prompt.ids).decode() == fitting[0]
        assert prompt.n_dropped == candidates.index(fitting[0])
        assert (prompt.n_cut, prompt.system_dropped) == (0, False)
    else:
        assert len(prompt.ids) <= room
        assert prompt.n_cut or prompt.system_dropped
