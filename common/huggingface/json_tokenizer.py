"""A vocabulary as Hugging Face's tokenizers runs it: whatever a tokenizer.json may say.

It is for what byte pairs by ranks cannot express: SentencePiece's with byte fallback, as Llama's,
and texts that are normalised first, as Qwen's. Where it puts a blank before each text, as Llama's
does, that is a part of the text when it is decoded, and one stands before each chunk of 4 MB of a
longer document.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# The visible character that stands for each byte. Source: Radford et al. 2019, released code,
# encoder.py, bytes_to_unicode.
_VISIBLE = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
CHARACTERS = [chr(b if b in _VISIBLE else 256 + _OTHERS.index(b)) for b in range(256)]
BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
FALLBACK = {f"<0x{byte:02X}>": byte for byte in range(256)}


@dataclass(frozen=True)
class JsonTokenizer:
    """The vocabulary of a tokenizer.json, ``file_content``, whose added tokens are all special."""

    file_content: bytes
    special_tokens: dict[str, int]

    kind, name, file_name = "tokenizers", "imported", "tokenizer.json"

    @cached_property
    def library(self) -> "tokenizers.Tokenizer":
        """The library's own; text is ordinary text to it, as here."""
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self.file_content.decode("utf-8"))
        made.encode_special_tokens = True
        made.no_truncation()
        return made

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.library.get_vocab().values()) + 1

    @property
    def eot_id(self) -> int:
        """The id that ends every document."""
        return self.special_tokens["<|endoftext|>"]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, in order of ids; empty for special ids and for gaps."""
        table, special = [b""] * self.vocab_size, {*self.special_tokens.values()}
        is_byte_level = json.loads(self.file_content)["decoder"]["type"] == "ByteLevel"
        byte_of = BYTES if is_byte_level else FALLBACK
        for token, idx in self.library.get_vocab().items():
            if idx in special:
                continue
            parts = token if is_byte_level else [token]
            if all(part in byte_of for part in parts):
                table[idx] = bytes(byte_of[part] for part in parts)
            else:
                table[idx] = token.replace("\u2581", " ").encode()  # SentencePiece's blank
        return table

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` as ordinary text."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.library.encode(text, add_special_tokens=False).ids

    def missing(self, text: str) -> list[str]:
        """Return the characters of ``text`` that cannot be encoded: none, as any byte can be."""
        return []

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 bytes of ``ids``; special ids add none."""
        return b"".join(self.token_bytes[i] for i in ids)
