"""A small router for engine tests: it sends plans with draft budgets, forks, preempts and releases at will.

It keeps to the contract of shard.proto, and only sends a plan if the blocks that the contract lets a shard reserve are
there: an engine that refuses one has taken too many. Two ranks run every plan, an eager one and one that collects as
late as it may. Whatever happens, a sequence's tokens must be those that it yields alone and without drafts.
"""

from collections import deque
from dataclasses import dataclass, field

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.scheduling.block_ledger import GroupLimits
from scheduling_world import EOS, REJECTED, Rank, chain, next_token

EOS_SHARE = 0.05


@dataclass(eq=False)
class Driven:
    """A sequence as its router knows it."""

    seq_id: int
    tokens: list[int]
    """As of the last result."""
    num_prompt_tokens: int
    limit: int
    seed: int
    num_given: int
    """Tokens that were not sampled here: of the prompt, or appended by the fork that made it."""
    num_brought: int = 0
    """Tokens it had when it came to the shard: as long as it has no more, it may still be computing them."""
    computed: int = 0
    """As of the last result that ran it."""
    settled: int = 0
    """Known tokens as the shard's host has them when it applies the next plan."""
    runs: deque[tuple[int, int]] = field(default_factory=deque)
    """(step, most tokens it samples): plans whose effects are still to come."""
    known_after: deque[tuple[int, int]] = field(default_factory=deque)
    """(step, known tokens): results whose effects are still to come."""
    may_be_shared: bool = False
    """Its next write may go to a block that somebody else holds."""
    fork_step: int = 0
    """The last plan that forked it: results of earlier ones do not know what it shares."""
    stop: int = 0
    release_step: int = 0
    """The plan that released it."""

    def at_step(self, step: int, window: int) -> None:
        """The shard applies this plan: older effects have come."""
        while self.known_after and self.known_after[0][0] <= step - window:
            self.settled = self.known_after.popleft()[1]
        while self.runs and self.runs[0][0] <= step - window:
            self.runs.popleft()

    def bound(self, block_size: int, more: int = 0) -> int:
        """The most blocks it holds after a further run that samples at most `more` tokens."""
        most = min(self.settled + sum(n for _, n in self.runs) + more, self.limit)
        return -(-most // block_size) + self.may_be_shared


class DraftDriver:
    """Plans and their results, `window` of them in flight."""

    def __init__(self, limits: GroupLimits, window: int, max_draft_tokens: int) -> None:
        self.limits, self.window = limits, window
        self.ranks = [
            Rank(limits, EOS_SHARE, window, lazy=lazy, max_draft_tokens=max_draft_tokens) for lazy in (False, True)
        ]
        self.on_shard: list[Driven] = []
        self.waiting: list[Driven] = []
        """Preempted, to be admitted again."""
        self.finished: list[Driven] = []
        self.inflight: deque[tuple[shard_pb2.StepPlan, list[Driven]]] = deque()
        self.plan = shard_pb2.StepPlan(step=1)
        self._rows: list[Driven] = []
        self._released: list[Driven] = []
        self._num_tables = sum(group.num_tables for group in limits.groups)
        self._num_full_tables = sum(group.num_tables for group in limits.groups if not group.window)
        self._free = limits.num_blocks
        self._last_seq_id = 0
        self._verified: set[int] = set()
        """What the cache may hold in blocks that are in the prefix index."""

    @property
    def available(self) -> int:
        """Free blocks less what the plans in flight and the next one may still take.

        A table with a window may take what one without it does, and counts as if it held nothing.
        """
        block_size = self.limits.block_size
        counted = self.on_shard + self._released
        bounds = sum(self._num_tables * s.bound(block_size) for s in counted)
        return self._free - bounds + self._num_full_tables * sum(-(-s.computed // block_size) for s in counted)

    @property
    def num_planned_tokens(self) -> int:
        return sum(self.plan.run_token_budgets) + sum(self.plan.num_draft_tokens)

    def new(self, prompt: list[int], seed: int, max_tokens: int) -> Driven:
        """A request that fits into the pool alone."""
        limits = self.limits
        longest = (limits.num_blocks // self._num_tables - 1) * limits.block_size
        limit = min(len(prompt) + max_tokens, limits.max_model_len, longest)
        prompt = prompt[: limit - 1]
        return Driven(0, prompt, len(prompt), limit, seed, len(prompt))

    def admit(self, sequence: Driven) -> bool:
        """Adds it to the next plan; False: there is no room."""
        needed = self._num_tables * -(-len(sequence.tokens) // self.limits.block_size)
        if len(self.on_shard) == self.limits.max_num_seqs or needed > self.available:
            return False
        sequence.seq_id = self._next_id()
        sequence.computed, sequence.settled = 0, len(sequence.tokens)
        sequence.num_brought = len(sequence.tokens)
        sequence.runs.clear()
        sequence.known_after.clear()
        sequence.may_be_shared = False
        self.plan.admits.append(
            shard_pb2.Admit(
                seq_id=sequence.seq_id,
                token_ids=sequence.tokens,
                num_prompt_tokens=sequence.num_prompt_tokens,
                sampling_params=with_defaults(inference_pb2.SamplingParams(temperature=0.0, seed=sequence.seed)),
                stop=shard_pb2.StopConditions(max_tokens=sequence.limit - sequence.num_prompt_tokens, token_ids=[EOS]),
            )
        )
        self._verified.update(chain(sequence.tokens))
        self.on_shard.append(sequence)
        return True

    def fork(self, parent: Driven, num_back: int, appended: list[int], seed: int) -> bool:
        """Forks the parent num_back tokens before the last that the shard is sure to have; False: it cannot be.

        Tables with a window keep what a child needs that shares all tokens that are computed and certain; every run in
        flight computes one that is.
        """
        if self._num_tables > self._num_full_tables:
            num_back = 0
            if len(parent.runs) > 1:
                return False
        shared = max(1, parent.settled - 1 + bool(parent.runs) - num_back)
        length = shared + len(appended)
        has_sampled = parent.settled > parent.num_brought and not parent.stop
        can = has_sampled and parent.num_prompt_tokens <= length < parent.limit
        needed = -(-length // self.limits.block_size) - shared // self.limits.block_size + 1
        if self._num_tables > 1:
            # The child's blocks in tables with a window count as if none were the parent's.
            needed = self._num_tables * (-(-length // self.limits.block_size) + 1)
        if not can or len(self.on_shard) == self.limits.max_num_seqs or needed > self.available:
            return False
        tokens = parent.tokens[:shared] + appended
        child = Driven(self._next_id(), tokens, parent.num_prompt_tokens, parent.limit, seed, length)
        child.computed, child.settled, child.num_brought = shared, length, length
        for sequence in (parent, child):
            sequence.may_be_shared, sequence.fork_step = True, self.plan.step
        self.plan.forks.add(
            parent_seq_id=parent.seq_id,
            child_seq_id=child.seq_id,
            num_tokens=shared,
            appended_token_ids=appended,
            seed=seed,
        )
        self._verified.update(chain(tokens))
        self.on_shard.append(child)
        return True

    def release(self, sequence: Driven) -> None:
        """Finished, aborted or preempted: the shard is to forget it with the next plan."""
        if any(sequence is row for row in self._rows) or sequence.seq_id in {a.seq_id for a in self.plan.admits}:
            return
        self.plan.release_seq_ids.append(sequence.seq_id)
        sequence.release_step = self.plan.step
        self.on_shard.remove(sequence)
        self._released.append(sequence)

    def preempt(self, sequence: Driven) -> None:
        """Releases it, to be admitted again with the tokens so far."""
        self.release(sequence)
        if sequence in self._released and not sequence.stop:
            known = sequence.tokens.copy()
            self.waiting.append(
                Driven(0, known, sequence.num_prompt_tokens, sequence.limit, sequence.seed, sequence.num_given)
            )

    def run(self, sequence: Driven, budget: int, num_drafts: int) -> bool:
        """Adds a row to the next plan; False: it cannot be."""
        more = sequence.bound(self.limits.block_size, 1 + num_drafts) - sequence.bound(self.limits.block_size)
        more *= self._num_tables
        num_tokens = self.num_planned_tokens + budget + num_drafts
        if any(sequence is row for row in self._rows) or more > max(0, self.available):
            return False
        if num_tokens > self.limits.max_num_batched_tokens:
            return False
        self.plan.run_seq_ids.append(sequence.seq_id)
        self.plan.run_token_budgets.append(budget)
        self.plan.num_draft_tokens.append(num_drafts)
        sequence.runs.append((self.plan.step, 1 + num_drafts))
        self._rows.append(sequence)
        return True

    def send(self) -> None:
        """Sends the plan, and takes in the results that must be back before the next one is made."""
        data = self.plan.SerializeToString()
        for rank in self.ranks:
            rank.take(shard_pb2.StepPlan.FromString(data))
        self.inflight.append((self.plan, self._rows))
        self.plan, self._rows = shard_pb2.StepPlan(step=self.plan.step + 1), []
        while len(self.inflight) >= self.window:
            self.take_result()
        for sequence in self.on_shard:
            sequence.at_step(self.plan.step, self.window)

    def take_result(self) -> None:
        """Takes in the oldest result, if there is one, and checks it."""
        if not self.inflight:
            return
        plan, rows = self.inflight.popleft()
        result, other = [rank.result() for rank in self.ranks]
        assert result.state_digest == other.state_digest, "the ranks have drifted apart"
        assert result.sampled_token_ids == other.sampled_token_ids
        self._free = result.free_blocks[0]
        self._released = [s for s in self._released if s.release_step > plan.step]
        tokens = iter(result.sampled_token_ids)
        for i, sequence in enumerate(rows):
            num_sampled = result.num_sampled_tokens[i]
            assert num_sampled <= 1 + plan.num_draft_tokens[i]
            self._take_row(sequence, plan.step, result, i, [next(tokens) for _ in range(num_sampled)])
        assert next(tokens, None) is None
        for sequence in self.on_shard:
            sequence.at_step(self.plan.step, self.window)
        self._check_index()

    def _take_row(self, sequence: Driven, step: int, result: shard_pb2.StepResult, i: int, sampled: list[int]) -> None:
        if sequence.stop:
            assert not sampled
            return
        computed, known = result.num_computed_tokens[i], result.num_known_tokens[i]
        was_decoding = len(sequence.tokens) > sequence.num_brought
        sequence.tokens = [*sequence.tokens, *sampled]
        sequence.computed, sequence.stop = computed, result.stop_reasons[i]
        sequence.known_after.append((step, known))
        if step >= sequence.fork_step:
            sequence.may_be_shared = result.next_write_block_shared[i]
        assert known == len(sequence.tokens)
        assert sampled or not was_decoding, "a live row yields a token at least"
        if sampled:
            assert computed == known - 1
        self._verified.update(chain(sequence.tokens))
        if sequence.stop:
            self.finished.append(sequence)

    def _check_index(self) -> None:
        """No block in the prefix index of the eager rank holds anything but tokens that were verified."""
        rank = self.ranks[0]
        pool = rank.engine.pool
        for block in range(pool.num_blocks):
            if pool.is_indexed(block):
                held = set(rank.runner.cache[block])
                assert REJECTED not in held
                # Each block table's caches hold something else.
                assert {value & 0xFFFFFFFF for value in held} <= self._verified, (
                    f"block {block} is in the index with unverified tokens"
                )

    def _next_id(self) -> int:
        self._last_seq_id += 1
        return self._last_seq_id


def expected_tokens(sequence: Driven) -> list[int]:
    """What the sequence becomes alone and without drafts."""
    tokens = sequence.tokens[: sequence.num_given]
    while len(tokens) < sequence.limit:
        tokens.append(next_token(chain(tokens)[-1], sequence.seed, len(tokens), EOS_SHARE))
        if tokens[-1] == EOS:
            break
    return tokens
