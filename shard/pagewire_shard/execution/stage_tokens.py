"""How the stages of a pipeline before the last one learn what it has sampled.

All stages have the same device state: counts, block tables and token ids of all sequences. The last one samples and
tells what each step has yielded. The others count the computed tokens of a step at once, and append what it has sampled
when they know it, at the latest before a step that runs one of its sequences. The scheduler plans a sequence again only
when it has the token (scheduling/micro_batches.py), so that no stage waits here; if one does, it loses time alone.
"""

from collections import deque
from collections.abc import Callable

import torch
from pagewire.v1 import shard_pb2

from pagewire_shard.engine.runner import PendingTokens, RunBatch, StepTokens
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.host_transfer import Uplink
from pagewire_shard.parallel.pipeline import TokenMail

_ERROR, _GRAMMAR = shard_pb2.STOP_REASON_ERROR, shard_pb2.STOP_REASON_GRAMMAR

Append = Callable[[DeviceState, torch.Tensor, torch.Tensor, torch.Tensor, None], torch.Tensor]
"""append_sampled of model_runner.py."""


class ToldTokens:
    """The tokens of a step of the last stage, which tells the others when they are on the host."""

    def __init__(self, pending: PendingTokens, batch: RunBatch, tell: Callable[[bytes], None]) -> None:
        self._pending = pending
        self._sequences = batch.sequences
        self._tell = tell

    def is_ready(self) -> bool:
        """See PendingTokens."""
        return self._pending.is_ready()

    def wait(self) -> StepTokens:
        """See PendingTokens; to be called once."""
        tokens = self._pending.wait()
        for row, sequence in enumerate(self._sequences):
            constraint = sequence.constraint
            # Only this stage fills masks, and knows that none of its tokens was allowed.
            if constraint is not None and constraint.has_failed and tokens.stop_reasons[row] == _ERROR:
                tokens.stop_reasons[row] = _GRAMMAR
        message = shard_pb2.StepResult(
            num_computed_tokens=tokens.num_computed_tokens,
            num_known_tokens=tokens.num_tokens,
            num_sampled_tokens=tokens.num_sampled,
            sampled_token_ids=tokens.sampled_token_ids,
            stop_reasons=tokens.stop_reasons,
        )
        self._tell(message.SerializeToString())
        return tokens


class FollowedStep:
    """The tokens of a step of another stage, which the last one is to tell."""

    def __init__(self, batch: RunBatch, followed: "FollowedTokens") -> None:
        rows = zip(batch.sequences, batch.sample_lens, strict=True)
        self.sampling = {sequence: row for row, (sequence, num_sampled) in enumerate(rows) if num_sampled}
        """Sequences that sample, and their rows."""
        self.tokens: StepTokens | None = None
        self._followed = followed

    def is_ready(self) -> bool:
        """See PendingTokens."""
        self._followed.take_mail()
        return self.tokens is not None

    def wait(self) -> StepTokens:
        """See PendingTokens."""
        while self.tokens is None:
            self._followed.take_next()
        return self.tokens


class FollowedTokens:
    """What a stage before the last one has launched and does not know the tokens of."""

    def __init__(self, state: DeviceState, uplink: Uplink, mail: TokenMail, append: Append) -> None:
        self._state = state
        self._uplink = uplink
        self._mail = mail
        self._append = append
        self._untold: deque[FollowedStep] = deque()
        """Steps whose tokens have not come."""
        self._unappended: deque[FollowedStep] = deque()
        """Steps whose tokens are not on the device."""

    def begin(self, batch: RunBatch) -> FollowedStep:
        """A step's forward pass has been launched."""
        step = FollowedStep(batch, self)
        self._untold.append(step)
        if step.sampling:
            self._unappended.append(step)
        return step

    def end_epoch(self) -> None:
        """What steps have sampled concerns nobody any more. Those that were launched are told all the same."""
        self._unappended.clear()

    def take_mail(self) -> None:
        """Takes what has come."""
        while self._untold and not self._mail.is_empty:
            self.take_next()

    def take_next(self) -> None:
        """Waits for the tokens of the oldest step that lacks them."""
        told = self._mail.take()
        self._untold.popleft().tokens = StepTokens(
            num_computed_tokens=list(told.num_computed_tokens),
            num_tokens=list(told.num_known_tokens),
            stop_reasons=list(told.stop_reasons),
            num_sampled=list(told.num_sampled_tokens),
            sampled_token_ids=list(told.sampled_token_ids),
        )

    def catch_up(self, batch: RunBatch) -> None:
        """Appends, before the batch's step changes any slot, what steps before it have sampled: what is known, and
        what the batch's sequences need."""
        num_needed = 0
        for i, step in enumerate(self._unappended, 1):
            if not step.sampling.keys().isdisjoint(batch.sequences):
                num_needed = i
        while self._unappended and (num_needed > 0 or self._unappended[0].is_ready()):
            self._append_tokens(self._unappended.popleft())
            num_needed -= 1

    def _append_tokens(self, step: FollowedStep) -> None:
        tokens = step.wait()
        sampled = iter(tokens.sampled_token_ids)
        of_rows = [next(sampled) if num_sampled else -1 for num_sampled in tokens.num_sampled]
        # The slot of a sequence that was released may be another's by now.
        rows = [(sequence.slot, 0, of_rows[row]) for sequence, row in step.sampling.items() if not sequence.released]
        if rows:
            slots, no_tokens, token_ids = (
                self._uplink.upload([value for each in zip(*rows, strict=True) for value in each]).view(3, -1).unbind(0)
            )
            self._append(self._state, slots, no_tokens, token_ids, None)
