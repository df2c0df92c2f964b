"""Shows a stream of events on the terminal as it comes."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.events import Event, SequenceFinished, TokenDelta


@dataclass(slots=True)
class Reply:
    """The part of a reply that was shown."""

    text: str = ""
    num_tokens: int = 0
    finished: SequenceFinished | None = None


def show(events: Iterable[Event], reply: Reply) -> Reply:
    """Writes the text of the first sequence as it comes; returns when the stream ends.

    Args:
        reply: updated as text is shown, so that an interrupted caller has the part so far.
    """
    for event in events:
        if isinstance(event, TokenDelta) and event.index == 0:
            sys.stdout.write(event.text)
            sys.stdout.flush()
            reply.text += event.text
            reply.num_tokens += len(event.token_ids)
        elif isinstance(event, SequenceFinished):
            reply.finished = event
    return reply
