"""Where one sequence stands in its grammar."""

from collections.abc import Collection, Sequence
from hashlib import blake2b

from llguidance import LLMatcher

from pagewire_shard.grammar.roots import Key, Root

MAX_ERROR_CHARS = 300
STATE_BYTES = 16


class Matcher:
    """The state of one sequence's grammar: follows its tokens, and says which may come next (`fill_masks`).

    Tokens that end a sequence are no part of its grammar. They are allowed where the grammar is complete; behind them,
    which matters to sequences that ignore the end-of-sequence token, only more of them are.

    Not thread-safe; different matchers may be used by different threads.
    """

    __slots__ = (
        "_all_ends",
        "dropped_ends",
        "ends",
        "error",
        "extra_ends",
        "ll_matcher",
        "num_ended",
        "origin",
        "state",
    )

    def __init__(self, ll_matcher: LLMatcher, eos_token_ids: Collection[int], end_token_ids: Collection[int]) -> None:
        """end_token_ids: tokens at which the sequence stops, as StopConditions.token_ids has them."""
        eos, ends = frozenset(eos_token_ids), frozenset(end_token_ids)
        self.ll_matcher = ll_matcher
        self.error = ""
        """Why the matcher has failed, in one line; empty: it has not. A failed matcher stays failed."""
        self.ends = ends or eos
        """The tokens that may follow a complete grammar."""
        self.extra_ends = self.ends - eos
        """Those that llguidance does not know as ends."""
        self.dropped_ends = eos - self.ends
        """End-of-sequence tokens that do not stop the sequence: others do."""
        self.num_ended = 0
        """Tokens taken in from the first one that ended the sequence on."""
        self.origin: tuple[Key, Root] | None = None
        """The grammar that this began with."""
        self.state: bytes | None = b""
        """A digest of the tokens taken in within the grammar; None: not known, since some were taken back."""
        self._all_ends = eos | ends

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Takes in tokens that were sampled, or all tokens behind the prompt of a sequence that is admitted again.

        Returns False if the grammar does not allow them; then `error` says why.
        """
        if self.error:
            return False
        if self._all_ends.isdisjoint(token_ids):
            inside, num_behind = token_ids, 0
        else:
            first_end = next(i for i, token_id in enumerate(token_ids) if token_id in self._all_ends)
            inside, num_behind = token_ids[:first_end], len(token_ids) - first_end
        if inside:
            if self.num_ended:
                return self.fail("tokens follow the end of the sequence")
            if not self.ll_matcher.consume_tokens(list(inside)):
                return self.fail(self.ll_matcher.get_error())
            self.note_taken(inside)
        self.num_ended += num_behind
        return True

    def is_inside(self, token_id: int) -> bool:
        """Whether a token that comes next is one of the grammar's: the sequence has not ended, and does not with it."""
        return not (self.error or self.num_ended or token_id in self._all_ends)

    def fork(self) -> "Matcher":
        """A matcher in the same state, which goes its own way. Takes microseconds."""
        child = Matcher.__new__(Matcher)
        for name in Matcher.__slots__:
            setattr(child, name, getattr(self, name))
        child.ll_matcher = self.ll_matcher.deep_copy()
        return child

    def rollback(self, num_tokens: int) -> bool:
        """Takes back the last tokens. Returns False, and has failed, if they are more than were taken in."""
        num_ended = min(num_tokens, self.num_ended)
        self.num_ended -= num_ended
        if num_tokens > num_ended:
            self.state = None
            if not self.ll_matcher.rollback(num_tokens - num_ended):
                return self.fail("tokens are taken back that were never taken in")
        return not self.error

    @property
    def is_finished(self) -> bool:
        """The grammar is complete, and nothing but the end of the sequence may follow."""
        return not self.error and (self.num_ended > 0 or self.ll_matcher.is_stopped())

    @property
    def position(self) -> tuple[int, bytes] | None:
        """Equal for two matchers whose masks are equal, but for the ends; None: nothing is known to be equal."""
        return None if self.origin is None or self.state is None else (id(self.origin[1]), self.state)

    def note_taken(self, token_ids: Sequence[int]) -> None:
        """llguidance has taken in tokens within the grammar, one after the other."""
        if self.state is not None:
            for token_id in token_ids:
                self.state = blake2b(self.state + token_id.to_bytes(8, "big"), digest_size=STATE_BYTES).digest()

    def fail(self, reason: str) -> bool:
        """Marks the matcher as failed; returns False."""
        self.error = (reason.strip().splitlines() or ["the grammar has failed"])[0][:MAX_ERROR_CHARS]
        return False
