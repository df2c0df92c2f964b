"""Makes texts that quote a client or a file fit to be sent and logged."""

import re

UNSENDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def shorten(text: str, max_chars: int) -> str:
    """The text, cut where it is too long, with escapes for what cannot be sent: lone surrogates and controls."""
    text = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    safe = UNSENDABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return safe if len(safe) <= max_chars else safe[: max_chars - 3] + "..."
