"""A conversation in ids: held against ids set down by hand, and against transformers' rendering."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from common.chat_format import CHAT_TEMPLATE
from common.dataset import open_data
from common.errors import ConfigError
from common.tokenizer import GPT2_PATTERN, SPECIAL_TOKENS, Tokenizer, save_tokenizer
from sample.text.prompt import (
    CHAT,
    RAW,
    TURNS,
    Message,
    TruncatedPrompt,
    build_prompt,
    encode,
    find_template,
    split_turns,
)
from tests.processes import run_python
from tests.sample.chats import ASSISTANT, BYTES, END, FORGED, SYSTEM, USER, by_hand
from tests.tiny import prepare_text, words


def messages(*said: tuple[str, str]) -> list[Message]:
    return [Message(role, text) for role, text in said]  # type: ignore[arg-type]


def fit(talk: list[Message], block_size: int, max_new_tokens: int) -> TruncatedPrompt:
    return build_prompt(
        talk, template=CHAT, tokenizer=BYTES, block_size=block_size, max_new_tokens=max_new_tokens
    )


def test_who_speaks_and_where_it_ends_is_said_by_ids_and_blanks_around_are_none_of_it() -> None:
    talk = messages(
        ("system", "be\n"), ("user", " a b\n\n"), ("assistant", "\tc"), ("user", "d"), ("user", "")
    )
    assert encode(talk, CHAT, BYTES) == [
        SYSTEM, *b"be", END, USER, *b"a b", END, ASSISTANT, *b"c", END, USER, *b"d", END,
        USER, END, ASSISTANT,
    ]  # fmt: skip


@pytest.mark.parametrize("begun", ["", " ", "Hel", " Hel "])
def test_an_answer_that_is_last_is_continued(begun: str) -> None:
    talk = messages(("user", "i"), ("assistant", begun))
    assert encode(talk, CHAT, BYTES) == [USER, *b"i", END, ASSISTANT, *begun.strip().encode()]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, FORGED, "{{ x }} {user} <|im_end|>"])
def test_words_that_look_like_the_format_stay_words(role: str, text: str) -> None:
    ids = encode(messages((role, text), ("user", "b")), CHAT, BYTES)
    assert ids == [*by_hand((role, text), ("user", "b")), ASSISTANT]
    assert [idx for idx in ids if idx > 255][1:] == [END, USER, END, ASSISTANT]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """Return a learned vocabulary and its file."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = prepare_text(words(3000), folder, tokenizer="bpe").tokenizer()
    save_tokenizer(tokenizer, folder)
    return tokenizer, folder / tokenizer.file_name


@pytest.mark.parametrize(
    "talk",
    [
        [("user", "the quern turns grain")],
        [("system", " Be brief.\n"), ("user", "\n  flour?"), ("assistant", "stone  \u00fcber "),
         ("user", "one person\n\nturns it slowly\t")],
        [("user", ""), ("assistant", " "), ("system", "{{ 1 }}"), ("user", "<| end |> \u3000")],
    ],
)  # fmt: skip
def test_transformers_renders_the_checkpoint_s_template_into_the_same_ids(
    vocabulary: tuple[Tokenizer, Path], talk: list[tuple[str, str]]
) -> None:
    tokenizer, file = vocabulary
    converted = TikTokenConverter(
        vocab_file=str(file), pattern=GPT2_PATTERN, extra_special_tokens=list(SPECIAL_TOKENS)
    ).converted()
    theirs = PreTrainedTokenizerFast(tokenizer_object=converted, chat_template=CHAT_TEMPLATE)
    conversation = [{"role": role, "content": text} for role, text in talk]
    rendered = theirs.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )
    assert rendered == encode(messages(*talk), CHAT, tokenizer)


def test_prepare_writes_what_the_prompt_says(vocabulary: tuple[Tokenizer, Path]) -> None:
    tokenizer, file = vocabulary
    talk = [("system", " be\n"), ("user", FORGED), ("assistant", "\u3000the stone "), ("user", "a"),
            ("assistant", "<|endoftext|>")]  # fmt: skip
    line = json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]})
    (file.parent / "talk.jsonl").write_text(line + "\n", encoding="utf-8")
    command = ["-m", "prepare", "chats", "talk.jsonl", "--tokenizer", "data", "--out", "chats"]
    ended = run_python([*command, "--val-fraction", "0"], file.parent)
    assert ended.returncode == 0, ended.stderr
    ids = open_data(file.parent / "chats").tokens("train").tolist()
    assert ids == [*encode(messages(*talk), CHAT, tokenizer), *ids[-2:]]
    assert ids[-2:] == [tokenizer.special_tokens["<|end|>"], tokenizer.eot_id]


def test_whole_turns_are_left_out_the_oldest_first_and_the_system_text_stays() -> None:
    turns = [[("user", f"q{i}"), ("assistant", f"a{i}")] for i in range(3)]  # 8 ids each
    talk = messages(("system", "sys"), *(each for turn in turns for each in turn), ("user", "z"))
    head, last = by_hand(("system", "sys")), [*by_hand(("user", "z")), ASSISTANT]  # 5 and 4
    for room, kept in ((33, turns), (32, turns[1:]), (25, turns[1:]), (24, turns[2:]), (9, [])):
        prompt = fit(talk, room + 10, 10)
        middle = by_hand(*(each for turn in kept for each in turn))
        assert prompt.ids == head + middle + last
        assert prompt.n_dropped == 3 - len(kept)


said = st.lists(
    st.builds(
        Message, st.sampled_from(["user", "assistant", "system"]), st.text("a\u00fc <|", max_size=9)
    ),
    max_size=8,
)


@given(said, st.integers(1, 60), st.integers(1, 60))
def test_what_fits_is_the_most_of_the_last_turns_that_do(
    talk: list[Message], block_size: int, max_new_tokens: int
) -> None:
    prompt = fit(talk, block_size, max_new_tokens)
    system, turns = split_turns(talk)
    room = block_size - min(max_new_tokens, block_size // 2)
    candidates = [
        encode([*system, *(message for turn in turns[first:] for message in turn)], CHAT, BYTES)
        for first in range(max(1, len(turns)))
    ]
    fitting = [ids for ids in candidates if len(ids) <= room]
    if fitting:
        assert (prompt.ids, prompt.n_cut, prompt.system_dropped) == (fitting[0], 0, False)
    else:
        assert len(prompt.ids) <= room
        assert prompt.n_cut or prompt.system_dropped


def test_of_a_turn_too_long_the_words_that_go_on_are_still_their_speaker_s() -> None:
    question, begun = ("user", "x" * 50), ("assistant", "y" * 50)
    assert fit(messages(question), 40, 20).ids == [USER, *b"x" * 17, END, ASSISTANT]
    asked = fit(messages(question, ("assistant", "y" * 5)), 40, 20)
    assert asked.ids == [USER, *b"x" * 12, END, ASSISTANT, *b"y" * 5]
    assert fit(messages(question, begun), 40, 20).ids == [ASSISTANT, *b"y" * 19]
    assert fit(messages(question, begun), 40, 20).n_cut == 83
    assert fit(messages(question), 1, 9).ids == [ASSISTANT]


def test_a_network_talks_in_its_own_format_unless_another_is_asked_for() -> None:
    assert find_template(None, is_chat=True) is find_template("chat", is_chat=True) is CHAT
    assert find_template(None, is_chat=False) is RAW
    assert find_template("turns", is_chat=True) is TURNS
    with pytest.raises(ConfigError, match="--template chat: this is a base model, which never"):
        find_template("chat", is_chat=False)
