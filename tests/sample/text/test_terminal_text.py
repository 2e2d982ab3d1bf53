"""What a terminal would obey is spelled out, and text is left alone."""

from sample.text.terminal_text import escape_controls


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    text = "a\tb\n\x1b[2J\x07\r\x9b\x7f\u00fc"
    assert escape_controls(text) == "a\tb\n\\x1b[2J\\x07\\x0d\\x9b\\x7f\u00fc"
