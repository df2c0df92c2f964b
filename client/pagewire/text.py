"""What text may hold on its way to a server."""

import os


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode it: it has no lone surrogates, such as undecodable bytes of a file name leave behind."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_command_line(word: str) -> str:
    """A word of the command line as text: UTF-8 whatever the locale says, with what is no text replaced."""
    return word if is_encodable(word) else os.fsencode(word).decode(errors="replace")
