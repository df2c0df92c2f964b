"""Checks and conversions of text that is sent to a server."""

import os


def is_encodable(text: str) -> bool:
    """Returns whether UTF-8 can encode the text, which it cannot if there are lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_command_line(word: str) -> str:
    """Returns an argument of the command line as text: UTF-8 in any locale, undecodable bytes replaced."""
    return word if is_encodable(word) else os.fsencode(word).decode(errors="replace")
