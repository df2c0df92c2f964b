"""Requests to a served model, and the results of their streams."""

from pagewire import Event, SamplingParams, SequenceFinished, Started, TokenDelta

TEXT = "Hello, my name is"
NUM_TOKENS = 24
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


def collect(events: list[Event]) -> tuple[str, list[int], SequenceFinished]:
    """Text, tokens and end of a stream of one sequence."""
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], SequenceFinished)
    deltas = events[1:-1]
    assert all(isinstance(delta, TokenDelta) for delta in deltas)
    tokens = [token for delta in deltas for token in delta.token_ids]
    return "".join(delta.text for delta in deltas), tokens, events[-1]
