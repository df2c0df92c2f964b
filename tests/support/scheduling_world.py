"""A scheduler, one or two ranks of a shard group, and a model that is a hash function: no device, no network.

The runner keeps a key-value cache of hashes. What it samples depends on what it finds there, so a block that is shared,
copied, evicted or overwritten wrongly shows up as a wrong token.

Drafts: a World(..., max_draft_tokens=4) has shards that take plans with num_draft_tokens up to 4. How many of a row's
drafts are accepted is random, but fixed by the sequence's seed and length, so that ranks agree. Tokens do not depend on
drafts: expected_output is what a sequence yields with any numbers of them. Rejected drafts leave garbage in the cache.
"""

import random
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.cache_groups import num_states_of, table_windows
from pagewire_common.sampling_params import with_defaults
from pagewire_kernels.sample.columns import MAX_BAD_WORD_TOKENS
from pagewire_router.beams.search import BeamSearch
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import SequenceGroup, sequence_seed
from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.engine.runner import BatchMasks, RunBatch, StepTokens
from pagewire_shard.engine.sequence import Sequence

VOCAB_SIZE = 6
EOS = 0
REFUSED_GRAMMARS = {"bad": 3, "slow": 8}
"""Grammars that a rank refuses, and the codes it does so with."""
REJECTED = -7
"""Marks a rejected draft in the cache."""


def chain(tokens: list[int]) -> list[int]:
    """What the cache holds for each token: a hash of it and all before it."""
    value, out = 1, []
    for token in tokens:
        value = hash((value, token)) & 0xFFFFFFFF
        out.append(value)
    return out


def prompt_logprobs(prompt: list[int]) -> list[float]:
    """Of each token of a prompt but the first; a float32 holds them."""
    return [-float(value % 997) for value in chain(prompt)[1:]]


def next_token(last: int, seed: int, position: int, eos_share: float) -> int:
    rng = random.Random(last * 1_000_003 + seed * 7919 + position)
    return EOS if rng.random() < eos_share else rng.randrange(1, VOCAB_SIZE)


def next_scores(last: int, is_too_short: bool, vocab_size: int) -> list[tuple[int, float]]:
    """Tokens behind a sequence with their log-probabilities, best first; EOS is none while it is too short to end."""
    rng = random.Random(last * 31)
    scores = [(token, -rng.random() * 4) for token in range(vocab_size)]
    return sorted((s for s in scores if s[0] != EOS or not is_too_short), key=lambda s: -s[1])


def num_accepted(seed: int, position: int, num_drafts: int) -> int:
    """How many of a row's drafts are accepted when its next token comes at this position."""
    return random.Random(seed * 7919 + position).randrange(num_drafts + 1)


def shard_info(limits: GroupLimits, vocab_size: int, max_draft_tokens: int = 0) -> shard_pb2.ShardInfo:
    """What a shard of these limits says of itself, as far as an engine reads it."""
    return shard_pb2.ShardInfo(
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        vocab_size=vocab_size,
        max_logprobs=max(20, vocab_size),
        max_draft_tokens=max_draft_tokens,
        max_scores=vocab_size,
        max_bad_word_tokens=MAX_BAD_WORD_TOKENS,
        block_size=limits.block_size,
        longest_short=limits.longest_short,
        cache_groups=[
            shard_pb2.CacheGroup(window=g.window, num_tables=g.num_tables, num_states=g.num_states)
            for g in limits.groups
        ],
    )


class HashRunner:
    """Rows as the device has them: exact counts, stops known at once, void rows that write nowhere."""

    samples = True

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        eos_share: float,
        windows: tuple[int, ...] = (0,),
        num_states: int = 0,
    ) -> None:
        """windows: By block table; 0: a token looks back on all before it."""
        self.block_size, self.max_model_len, self.eos_share = block_size, max_model_len, eos_share
        self.windows = windows
        self.cache = [[-1] * block_size for _ in range(num_blocks)]
        self.states: list[object] = [None] * num_states
        """By state slot: the hash of all tokens before it, and how many they are; garbage where a void row wrote."""
        self.rows: dict[int, dict] = {}
        self.num_computed_total = 0
        self.tokens_of_steps: list[int] = []
        """Tokens that each step computes, draft tokens included."""
        self.begun: RunBatch | None = None
        """A step that awaits its sampling."""
        self.poisons: dict[int, int] = {}
        """First tokens of sequences that break steps, and from which length on they do."""

    def admit(self, sequence: Sequence) -> None:
        self.rows[sequence.slot] = {
            "tokens": list(sequence.token_ids),
            "computed": sequence.num_computed_tokens,
            "tables": [list(blocks) for blocks in (sequence.blocks, *sequence.other_tables)],
            "stop": 0,
            "max_len": min(sequence.num_prompt_tokens + sequence.stop.max_tokens, self.max_model_len),
            "min_len": sequence.num_prompt_tokens + sequence.stop.min_tokens,
            "seed": sequence.seed,
            "eos": EOS in sequence.stop.token_ids,
            "num_prompt": sequence.num_prompt_tokens,
            "scores": sequence.num_prompt_logprobs,
            "known": sequence.min_recompute_from,
        }

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """Its steps take no time."""

    def end_epoch(self) -> None:
        """A step whose forward pass has begun writes its keys and values, though nobody samples it any more."""
        if self.begun is not None:
            for slot, query_len in zip(self.begun.slots, self.begun.query_lens, strict=True):
                if not self.rows[slot]["stop"]:
                    self._run(self.rows[slot], query_len, 0)
        self.begun = None

    def launch(self, batch: RunBatch) -> StepTokens:
        self.forward(batch)
        return self.sample(batch)

    def forward(self, batch: RunBatch) -> None:
        updates = [(0, *update) for update in batch.table_updates]
        for number, slot, index, block in updates + batch.other_table_updates:
            table = self.rows[slot]["tables"][number]
            table[index : index + 1] = [block]
        for source, destination in batch.copies:
            self.cache[destination] = list(self.cache[source])
        self._break_if_poisoned(batch)
        if self.states:
            self._move_states_on(batch)
        self.begun = batch

    def sample(self, batch: RunBatch, masks: BatchMasks | None = None) -> StepTokens:
        self.begun = None
        self.tokens_of_steps.append(sum(batch.query_lens))
        out = StepTokens()
        self._apply_masks(batch, masks)
        for slot, query_len, sample_len in zip(batch.slots, batch.query_lens, batch.sample_lens, strict=True):
            row = self.rows[slot]
            if row["scores"] is not None:
                self._score_prompt(row, query_len, out)
            sampled = [] if row["stop"] else self._run(row, query_len, sample_len)
            assert row["computed"] <= batch.max_seq_len
            out.num_computed_tokens.append(row["computed"])
            out.num_tokens.append(len(row["tokens"]))
            out.num_sampled.append(len(sampled))
            out.sampled_token_ids.extend(sampled)
            out.stop_reasons.append(row["stop"])
        for place in batch.scored:
            row = self.rows[batch.slots[place]]
            best = next_scores(self._found(row)[-1], len(row["tokens"]) < row["min_len"], VOCAB_SIZE)
            best = best[: batch.sequences[place].num_scores]
            ids, logprobs = zip(*best, strict=True)
            out.row_scores.append(shard_pb2.RowScores(run_index=place, token_ids=ids, logprobs=logprobs))
        return out

    def _move_states_on(self, batch: RunBatch) -> None:
        """Every row begins with the state behind what it has computed, and nobody writes what another one reads."""
        live = {slot for slot in batch.read_slots if slot >= 0}
        assert len(set(batch.write_slots)) == len(batch.slots)
        for slot, query_len, read, write in zip(
            batch.slots, batch.query_lens, batch.read_slots, batch.write_slots, strict=True
        ):
            assert write == read or write not in live
            row = self.rows[slot]
            if row["stop"]:
                self.states[write] = "garbage of a row that has stopped"
                continue
            first, states = row["computed"], [(1, 0), *zip(chain(row["tokens"]), range(1, 1 << 20), strict=False)]
            found = (1, 0) if read < 0 else self.states[read]
            assert found == states[first], "the sequence does not begin with its state"
            self.states[write] = states[first + query_len]

    def _apply_masks(self, batch: RunBatch, masks: BatchMasks | None) -> None:
        """Every mask must be that of the row's tokens. One that allows nothing stops the row."""
        for i, (slot, sequence) in enumerate(zip(batch.slots, batch.sequences, strict=True)):
            row, mask = self.rows[slot], -1 if masks is None else masks.rows[i]
            if row["stop"] or not (batch.sample_lens[i] or i in batch.scored):
                continue
            if sequence.constraint is None:
                assert mask == -1
                continue
            (bits,) = masks.bits[mask]
            row["is_stuck"] = bits == 0
            assert bits in (0, mask_of(row["tokens"][sequence.num_prompt_tokens :]))

    def _break_if_poisoned(self, batch: RunBatch) -> None:
        """A step with a poisoned sequence breaks once the sequence has grown to the length that its poison names."""
        for slot in batch.slots:
            tokens = self.rows[slot]["tokens"]
            if tokens[0] in self.poisons and len(tokens) >= self.poisons[tokens[0]] and not self.rows[slot]["stop"]:
                raise RuntimeError("poison")

    def _run(self, row: dict, query_len: int, sample_len: int) -> list[int]:
        """Computes the row's next tokens, its drafts behind them, and returns what it samples."""
        num_drafts = max(0, sample_len - 1)
        self.num_computed_total += query_len
        values = chain(row["tokens"])
        first = row["computed"]
        for value in values[first : first + query_len - num_drafts]:
            self._compute(row, value)
        self._check_seen(row, first)
        if not sample_len:
            return []
        if row.get("is_stuck"):
            row["stop"] = shard_pb2.STOP_REASON_ERROR
            return []
        end = row["computed"] + num_drafts
        accepted = num_accepted(row["seed"], len(row["tokens"]), num_drafts)
        sampled: list[int] = []
        while not row["stop"] and len(sampled) <= accepted:
            if sampled:
                self._compute(row, chain(row["tokens"])[-1])
            sampled.append(self._sample(row))
        for position in range(row["computed"], end):
            self._write(row, position, REJECTED)
        return sampled

    def _score_prompt(self, row: dict, query_len: int, out: StepTokens) -> None:
        first = max(row["computed"], row["known"]) + 1
        logprobs = prompt_logprobs(row["tokens"][: row["num_prompt"]])[first - 1 : row["computed"] + query_len]
        if logprobs:
            scores = shard_pb2.PromptScores(run_index=len(out.num_tokens), first_position=first, logprobs=logprobs)
            out.prompt_scores.append(scores)

    def _found(self, row: dict) -> list[int]:
        """What a row computed that has caught up with its tokens."""
        assert row["computed"] == len(row["tokens"])
        self._check_seen(row, row["computed"] - 1)
        return chain(row["tokens"])

    def _check_seen(self, row: dict, first: int) -> None:
        """The caches hold what the row's tokens from the first one on attend to."""
        end, expected = row["computed"], chain(row["tokens"])
        for number, (table, window) in enumerate(zip(row["tables"], self.windows, strict=True)):
            low = max(0, first - window + 1) if window else 0
            found = [self.cache[table[p // self.block_size]][p % self.block_size] for p in range(low, end)]
            marked = [value + (number << 32) for value in expected[low:end]]
            assert found == marked, "the cache does not hold what the sequence computed"

    def _compute(self, row: dict, value: int) -> None:
        self._write(row, row["computed"], value)
        row["computed"] += 1

    def _write(self, row: dict, position: int, value: int) -> None:
        """Each block table's caches hold something else."""
        for number, table in enumerate(row["tables"]):
            marked = value if value == REJECTED else value + (number << 32)
            self.cache[table[position // self.block_size]][position % self.block_size] = marked

    def _sample(self, row: dict) -> int:
        token = next_token(chain(row["tokens"])[-1], row["seed"], len(row["tokens"]), self.eos_share)
        row["tokens"].append(token)
        if token == EOS and row["eos"]:
            row["stop"] = shard_pb2.STOP_REASON_TOKEN
        elif len(row["tokens"]) >= row["max_len"]:
            row["stop"] = shard_pb2.STOP_REASON_LENGTH
        return token


class CountingRunner(HashRunner):
    """A runner that only counts, for long prompts. What it samples is always the same."""

    def _run(self, row: dict, query_len: int, sample_len: int) -> list[int]:
        row["computed"] += query_len
        self.num_computed_total += query_len
        if not sample_len:
            return []
        row["tokens"].append(1)
        row["stop"] = shard_pb2.STOP_REASON_LENGTH if len(row["tokens"]) >= row["max_len"] else 0
        return [1]


def mask_of(token_ids: list[int]) -> int:
    """The mask of a sequence with these tokens behind its prompt: another one for other tokens."""
    return zlib.crc32(bytes(token_ids)) & 0x7FFFFFFE | 1


class FakeMatcher:
    """A matcher that remembers what it has taken in. That of the grammar "dead" allows three tokens."""

    def __init__(self, name: str, token_ids: list[int]) -> None:
        self.name, self.token_ids = name, token_ids

    def fork(self) -> "FakeMatcher":
        return FakeMatcher(self.name, self.token_ids.copy())


class FakeGrammars:
    """The grammars of one rank."""

    num_mask_words = 1

    def __init__(self) -> None:
        self.ready: set[str] = set()

    def end_epoch(self) -> None:
        self.ready.clear()

    def matcher(self, name: str, end_token_ids: object) -> FakeMatcher:
        if name not in self.ready:
            raise LookupError(f"grammar {name} is not ready")
        return FakeMatcher(name, [])

    def advance(self, matchers: list[FakeMatcher], token_ids: list[list[int]]) -> None:
        for matcher, new in zip(matchers, token_ids, strict=True):
            matcher.token_ids += new

    def fill_masks(self, matchers: list[FakeMatcher], masks: npt.NDArray[np.int32]) -> list[int]:
        for row, matcher in enumerate(matchers):
            masks[row] = mask_of(matcher.token_ids)
        return [row for row, matcher in enumerate(matchers) if matcher.name == "dead" and len(matcher.token_ids) >= 3]


class Rank:
    """One shard. A lazy rank collects as late as the protocol allows, an eager one at once."""

    def __init__(
        self,
        limits: GroupLimits,
        eos_share: float,
        window: int,
        lazy: bool,
        vocab_size: int = VOCAB_SIZE,
        max_draft_tokens: int = 0,
        make_runner: type[HashRunner] = HashRunner,
    ) -> None:
        info = shard_info(limits, vocab_size, max_draft_tokens)
        self.runner = make_runner(
            limits.num_blocks,
            limits.block_size,
            limits.max_model_len,
            eos_share,
            table_windows(limits.groups),
            num_states_of(limits.groups),
        )
        self.grammars = FakeGrammars()
        pool = BlockPool(limits.num_blocks, limits.block_size)
        self.engine = Engine(info, self.runner, pool, self.grammars)  # type: ignore[arg-type]
        self.engine.begin_epoch(window)
        self.lazy = lazy
        self.pending: deque[LaunchedStep] = deque()
        self.results: deque[shard_pb2.StepResult] = deque()

    def take(self, plan: shard_pb2.StepPlan) -> None:
        self.pending.append(self.engine.launch(plan))
        self.engine.check_consistent()
        if not self.lazy:
            self._collect()

    def new_epoch(self, window: int) -> int:
        """Returns the free blocks."""
        self.pending.clear()
        self.results.clear()
        return self.engine.begin_epoch(window)[0]

    def _collect(self) -> None:
        while self.pending:
            self.results.append(self.engine.collect(self.pending.popleft()))

    def result(self) -> shard_pb2.StepResult:
        if not self.results:
            self.results.append(self.engine.collect(self.pending.popleft()))
        return self.results.popleft()


CANCELLED = 1
"""What a Prepare is answered with that was forgotten before it was ready."""


class GrammarDesk:
    """What the ranks answer to Prepares, each after some steps of its own. The grammar's name says what it answers."""

    def __init__(self, ranks: list[FakeGrammars], max_delay: int) -> None:
        self._ranks, self._max_delay = ranks, max_delay
        self.num_prepared: Counter[str] = Counter()
        """By name: how often it was asked for."""
        self._answers: list[tuple[int, int, shard_pb2.Prepared]] = []
        """Steps until it comes, the rank, the answer."""

    @property
    def is_busy(self) -> bool:
        return bool(self._answers)

    def take(self, message: shard_pb2.RouterMessage) -> None:
        """Takes what the router says to all ranks."""
        for name in message.forget.names:
            for rank in self._ranks:
                rank.ready.discard(name)
            for _, _, answer in self._answers:
                if answer.name == name:
                    answer.code = CANCELLED
        if message.HasField("prepare"):
            name = message.prepare.name
            assert message.prepare.grammar.regex == name
            assert all(name not in rank.ready for rank in self._ranks), "it is asked for once"
            self.num_prepared[name] += 1
            for rank in range(len(self._ranks)):
                delay = random.Random(f"{name} {rank} {self.num_prepared[name]}").randrange(self._max_delay + 1)
                code = REFUSED_GRAMMARS.get(name, 0) if rank == len(self._ranks) - 1 else 0
                self._answers.append((delay, rank, shard_pb2.Prepared(name=name, code=code, message="no")))

    def answer(self) -> list[shard_pb2.Prepared]:
        """The answers that come now."""
        due = [(rank, answer) for delay, rank, answer in self._answers if delay <= 0]
        self._answers = [(delay - 1, rank, answer) for delay, rank, answer in self._answers if delay > 0]
        for rank, answer in due:
            if not answer.code:
                self._ranks[rank].ready.add(answer.name)
        return [answer for _, answer in due]

    def forget_all(self) -> None:
        self._answers.clear()
        for rank in self._ranks:
            rank.ready.clear()


class World:
    """Drives the scheduler as the group loop does, with `window` plans in flight."""

    def __init__(
        self,
        limits: GroupLimits,
        window: int,
        eos_share: float,
        num_ranks: int = 1,
        max_draft_tokens: int = 0,
        make_runner: type[HashRunner] = HashRunner,
        max_grammar_delay: int = 0,
    ) -> None:
        self.scheduler = Scheduler(limits, num_ranks=num_ranks)
        self.scheduler.reset(limits.num_blocks, window)
        self.scheduler.num_draft_tokens = max_draft_tokens
        self.window, self.eos_share = window, eos_share
        self.ranks = [
            Rank(limits, eos_share, window, bool(i), max_draft_tokens=max_draft_tokens, make_runner=make_runner)
            for i in range(num_ranks)
        ]
        self.grammars = GrammarDesk([rank.grammars for rank in self.ranks], max_grammar_delay)
        self.now = 0.0
        self.max_running = 0
        self.prompt_logprobs: dict[SequenceGroup, list[float]] = {}
        """Those that have come of the prompts of requests that asked for them."""
        self.num_resumed_prompts = 0
        """Admissions of requests that have some of their prompts' log-probabilities."""
        self.num_shared_window_blocks = 0
        """Most that a result has told."""
        self.num_missed = 0
        """Requests that had less cached than the router guessed."""

    def submit(self, request: Request) -> SequenceGroup:
        return self.scheduler.add(request)

    def step(self) -> bool:
        """Sends plans while the window is open, then takes in one result. False: nothing is left to do."""
        self.now += 1.0
        self.scheduler.take_expired(self.now)
        self._talk_of_grammars()
        while self.scheduler.num_inflight < self.window:
            plan = self.scheduler.schedule(self.now)
            if plan is None:
                break
            self.num_resumed_prompts += sum(admit.min_recompute_from > 0 for admit in plan.admits)
            data = plan.SerializeToString()
            for rank in self.ranks:
                rank.take(shard_pb2.StepPlan.FromString(data))
        self.max_running = max(self.max_running, len(self.scheduler.running))
        if not self.scheduler.num_inflight:
            return self.grammars.is_busy or self.scheduler.grammars.has_messages
        results = [rank.result() for rank in self.ranks]
        assert len({r.state_digest for r in results}) == 1, "the ranks have drifted apart"
        self.num_shared_window_blocks = max(self.num_shared_window_blocks, results[0].num_shared_window_blocks)
        right = [group for group in self.scheduler.groups_in_flight() if not group.is_misguessed]
        for progress in self.scheduler.update(results[0]):
            if progress.failure:
                group = progress.sequence.group
                assert (progress.failure, group.request.grammar) == (shard_pb2.STOP_REASON_GRAMMAR, "dead")
                assert progress.sequence.num_output_tokens == 3
                self.scheduler.end(group)
            if progress.prompt_scores is not None:
                self.prompt_logprobs.setdefault(progress.sequence.group, []).extend(progress.prompt_scores.logprobs)
        self.num_missed += sum(group.is_misguessed for group in right)
        return True

    def _talk_of_grammars(self) -> None:
        for message in self.scheduler.take_messages():
            self.grammars.take(message)
        for answer in self.grammars.answer():
            self.scheduler.on_prepared(answer)
        for refusal in self.scheduler.grammars.refusals:
            assert refusal.code == REFUSED_GRAMMARS[refusal.group.request.grammar]
            self.scheduler.end(refusal.group)
        self.scheduler.grammars.refusals.clear()

    def new_epoch(self) -> None:
        """The plan stream breaks and is opened again: the ranks forget all sequences, not their cached blocks."""
        free = [rank.new_epoch(self.window) for rank in self.ranks]
        self.grammars.forget_all()
        self.scheduler.reset(free[0], self.window)
        self.scheduler.prefixes.update(self.ranks[0].engine.cached_hashes(), ())

    def lose_cache(self) -> None:
        """The ranks forget their cached blocks without telling the router."""
        for rank in self.ranks:
            for pool in (rank.engine.pool, rank.engine.states):
                pool.forget_all()
                pool.take_index_changes()

    def lose_checkpoints(self) -> None:
        """The ranks forget their checkpoints alone, without telling the router."""
        for rank in self.ranks:
            rank.engine.states.forget_all()
            rank.engine.states.take_index_changes()

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.step():
                assert not self.scheduler.has_work(), "the scheduler is stuck"
                return
        raise AssertionError("the scheduler does not come to an end")

    def check_whole(self) -> None:
        for rank in self.ranks:
            rank.engine.pool.check_whole()
            rank.engine.states.check_whole()
        assert self.scheduler.free_blocks == self.scheduler.limits.num_blocks


class NullSink:
    def on_prompt_scores(self, scores: object) -> None: ...

    def on_tokens(self, index: int, token_ids: list[int], logprobs: object) -> bool:
        return False

    def on_finished(self, index: int, reason: int, stop_token_id: int | None, num_cached: int) -> None: ...

    def on_failed(self, error: Exception) -> None: ...


def make_request(prompt: list[int], *, arrival_s: float = 0.0, eos: bool = True, **options: object) -> Request:
    names = ("priority", "deadline_s", "cache_salt", "grammar", "bad_words", "beams", "client", "weight")
    own = {name: options.pop(name) for name in names if name in options}
    if (grammar := own.get("grammar")) and "structured_outputs" not in options:
        options["structured_outputs"] = inference_pb2.StructuredOutputs(regex=grammar)
    return Request(
        request_id=f"r{id(prompt)}",
        prompt_token_ids=prompt,
        params=with_defaults(inference_pb2.SamplingParams(**options)),
        sink=NullSink(),
        arrival_s=arrival_s,
        eos_token_ids=(EOS,) if eos else (),
        **own,
    )


def expected_output(request: Request, index: int, max_model_len: int, eos_share: float) -> list[int]:
    """Returns the output of a sequence that runs alone."""
    tokens = list(request.prompt_token_ids)
    seed = sequence_seed(request.params.seed, index)
    limit = min(len(tokens) + request.params.max_tokens, max_model_len)
    while len(tokens) < limit:
        tokens.append(next_token(chain(tokens)[-1], seed, len(tokens), eos_share))
        if tokens[-1] == EOS and request.eos_token_ids:
            break
    return tokens[len(request.prompt_token_ids) :]


def expected_beams(request: Request) -> list[tuple[list[int], float]]:
    """What a beam search finds that runs alone: tokens and their summed log-probabilities."""
    assert request.beams is not None
    search, prompt = BeamSearch(request.beams), request.prompt_token_ids
    while not search.is_done:
        is_too_short = search.num_tokens < request.params.min_tokens
        scores = []
        for beam in search.beams:
            best = next_scores(chain(prompt + beam.token_ids())[-1], is_too_short, VOCAB_SIZE)
            # On the wire they are float32.
            best = [(token, struct.unpack("f", struct.pack("f", logprob))[0]) for token, logprob in best]
            scores.append(tuple(zip(*best[: request.beams.num_scores], strict=True)))
        search.advance(scores)
    return [(h.beam.token_ids(), h.beam.cumulative_logprob) for h in search.hypotheses]


def output(group: SequenceGroup, index: int = 0) -> list[int]:
    return group.sequences[index].token_ids[group.num_prompt_tokens :]


FINISHED_BY_ITSELF = (inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH)
