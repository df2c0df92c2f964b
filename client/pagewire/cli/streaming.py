"""Shows a stream of events on the terminal as it comes."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pagewire.events import Event, PromptLogprobs, SequenceFinished, TokenDelta
from pagewire.outputs import Logprob


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
        elif isinstance(event, PromptLogprobs):
            show_prompt_logprobs(event.logprobs)
        elif isinstance(event, SequenceFinished):
            reply.finished = event
    return reply


def show_prompt_logprobs(positions: Iterable[Mapping[int, Logprob] | None]) -> None:
    """Writes a line for each token that has log-probabilities: its own, its rank and text, the most probable ones."""
    for position in positions:
        if position is None:
            continue
        token, *others = position.values()
        columns = [f"{token.logprob:9.4f}", f"{token.rank:6}", f"{token.decoded_token!r:20}"]
        columns += [f"{other.logprob:.4f} {other.decoded_token!r}" for other in others]
        print("  ".join(columns))
