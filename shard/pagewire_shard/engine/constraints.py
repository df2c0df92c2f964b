"""Sequences that a grammar constrains: where each stands in its grammar, and the masks of a step's rows.

A mask depends on every token before it, also on those of steps in flight. So a step with such rows is launched in two
parts: its forward pass at once, its sampling when the tokens of all steps before it are on the host. Tokens are only
noted when they arrive; the matcher takes them in when the next mask is filled, beside the forward pass.

All of it follows from plans and tokens alone, so that ranks stay identical.
"""

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pagewire.v1 import shard_pb2

from pagewire_shard.engine.runner import BatchMasks, RunBatch
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.matcher import Matcher

_WORD_BITS = 32


@dataclass(slots=True, eq=False)
class Constraint:
    """Where one sequence stands in its grammar."""

    name: str
    """The grammar's, as plans have it."""
    matcher: Matcher
    stop: shard_pb2.StopConditions
    allowed: npt.NDArray[np.int32] | None = None
    """The mask of the only tokens that the request allows; None: it allows all."""
    pending: list[int] = field(default_factory=list)
    """Tokens behind the prompt that the matcher has not taken in."""
    num_taken: int = 0
    """Tokens behind the prompt that it has taken in."""
    has_stopped: bool = False
    """The sequence has stopped: rows in flight are void."""
    has_failed: bool = False
    """No token was allowed, by the grammar and the request together, or a limit was reached: the sequence has no next
    token."""

    def note(self, token_ids: Items[int], stop: int) -> None:
        """The sequence has sampled tokens. stop: the reason why it has stopped; 0: it has not."""
        self.pending += token_ids
        self.has_stopped = self.has_stopped or bool(stop)


class Constraints:
    """The constrained sequences of one engine."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._bits = np.empty((0, 0), dtype=np.int32)
        """Masks of the step that was filled last. A runner has copied them when it has been called."""
        self._thread = ThreadPoolExecutor(1, "masks")
        """Fills masks beside a forward pass that occupies the step thread."""

    def end_epoch(self) -> None:
        """The names of the epoch's grammars are void."""
        self._grammars.end_epoch()

    def of(self, admit: shard_pb2.Admit) -> Constraint:
        """The constraint of an admitted sequence, which may have tokens already. Raises GrammarNotReady."""
        matcher = self._grammars.matcher(admit.grammar, admit.stop.token_ids)
        allowed = self._mask_of(ids) if (ids := admit.sampling_params.allowed_token_ids) else None
        return Constraint(admit.grammar, matcher, admit.stop, allowed, admit.token_ids[admit.num_prompt_tokens :])

    def forked(self, parent: Constraint, token_ids: list[int], num_shared: int) -> Constraint:
        """The constraint of a child.

        Args:
            token_ids: All of the child's tokens behind the prompt.
            num_shared: How many of them, the first ones, its parent has too.
        """
        if parent.num_taken <= num_shared and not parent.has_failed:
            matcher, num_taken = parent.matcher.fork(), parent.num_taken
        else:
            matcher, num_taken = self._grammars.matcher(parent.name, parent.stop.token_ids), 0
        return Constraint(parent.name, matcher, parent.stop, parent.allowed, token_ids[num_taken:], num_taken)

    def begin(self, batch: RunBatch) -> Future[BatchMasks]:
        """Starts to fill the masks of a batch on another thread. Neither its sequences nor others may change."""
        return self._thread.submit(self.masks, batch)

    def masks(self, batch: RunBatch) -> BatchMasks:
        """The masks of a batch all of whose tokens so far have been noted."""
        rows = [-1] * len(batch.slots)
        constraints: list[Constraint] = []
        scored = frozenset(batch.scored)
        for row, (sequence, sample_len) in enumerate(zip(batch.sequences, batch.sample_lens, strict=True)):
            constraint = sequence.constraint
            if constraint is not None and not constraint.has_stopped and (sample_len or row in scored):
                rows[row] = len(constraints)
                constraints.append(constraint)
        return BatchMasks(self._fill(constraints), rows)

    def _fill(self, constraints: list[Constraint]) -> npt.NDArray[np.int32]:
        if len(self._bits) < len(constraints):
            self._bits = np.empty((len(constraints), self._grammars.num_mask_words), dtype=np.int32)
        bits, matchers = self._bits[: len(constraints)], [constraint.matcher for constraint in constraints]
        # What a grammar does not allow shows in the mask behind it.
        self._grammars.advance(matchers, [constraint.pending for constraint in constraints])
        for constraint in constraints:
            constraint.num_taken += len(constraint.pending)
            constraint.pending = []
        for row in self._grammars.fill_masks(matchers, bits):
            bits[row] = 0
            constraints[row].has_failed = True
        for row, constraint in enumerate(constraints):
            if constraint.num_taken < constraint.stop.min_tokens:
                _take_stops(bits[row], constraint.stop.token_ids)
            if constraint.allowed is not None and not (bits[row] & constraint.allowed).any():
                constraint.has_failed = True
        return bits

    def _mask_of(self, token_ids: Items[int]) -> npt.NDArray[np.int32]:
        is_allowed = np.zeros(self._grammars.num_mask_words * _WORD_BITS, dtype=np.bool_)
        is_allowed[list(token_ids)] = True
        return np.packbits(is_allowed, bitorder="little").view(np.int32)


def _take_stops(mask: npt.NDArray[np.int32], stop_token_ids: Items[int]) -> None:
    """Takes stop tokens from a mask, unless nothing else is left: a complete grammar ends before min_tokens."""
    longer = mask.copy()
    for token_id in stop_token_ids:
        longer.view(np.uint32)[token_id // _WORD_BITS] &= np.uint32(~(1 << token_id % _WORD_BITS) & 0xFFFFFFFF)
    if longer.any():
        mask[:] = longer
