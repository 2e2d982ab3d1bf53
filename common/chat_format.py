"""The chat format: how a conversation stands in token ids, and which of them are learned.

    <|system|> ... <|end|> <|user|> Hello <|end|> <|assistant|> Hi. <|end|> ... <|endoftext|>
                                                                -----------
                                                                learned

Who speaks, and where a message ends, is said by special ids, which no text is encoded into: what
looks like one of them in a message is ordinary text. Blanks around a message are none of it.
"""

from typing import Literal, get_args

from common.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
END_OF_MESSAGE = "<|end|>"

# The bits of a byte in train.mask and val.mask, one for each id.
LEARNED = 1  # as the assistant's words, and the end of its message
REJECTED = 2  # of the worse of two conversations, which follows the better one in one document

# The same for other software, in Jinja as transformers reads it; beside the vocabulary of whatever
# was made for it, and the sign that it was.
TEMPLATE_NAME = "chat_template.jinja"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def role_id(tokenizer: Tokenizer, role: Role) -> int:
    """Return the id that begins a message of ``role``."""
    return tokenizer.special_tokens[f"<|{role}|>"]


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids at which an answer ends: also those that would begin another message."""
    return [*tokenizer.special_tokens.values()]


def end_id(tokenizer: Tokenizer) -> int:
    """Return the id that ends a message."""
    return tokenizer.special_tokens[END_OF_MESSAGE]
