"""Whether a step plan keeps the contract of shard.proto: checked as a whole before anything of it is applied.

What a plan needs of blocks is the engine's to check, since it depends on what earlier steps have sampled.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items

import grpc
from pagewire.parameter_table import MAX_BAD_WORDS, Range
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.protocol import MAX_STOP_TOKENS
from pagewire_common.sampling_params import RESOLVED, faults

from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.errors import PlanRefused

_SCORE = shard_pb2.RUN_MODE_SCORE
_RUN_MODES = frozenset((shard_pb2.RUN_MODE_UNSPECIFIED, shard_pb2.RUN_MODE_SAMPLE, _SCORE))


def malformed(message: str) -> PlanRefused:
    """The refusal of a plan that breaks the contract."""
    return PlanRefused(grpc.StatusCode.INVALID_ARGUMENT, message)


class PlanCheck:
    """Checks plans against the limits of a shard. Every method raises PlanRefused that names the field."""

    def __init__(self, info: shard_pb2.ShardInfo) -> None:
        # Read for every plan, where fields of a message would cost more.
        self._max_num_seqs = info.max_num_seqs
        self._max_model_len = info.max_model_len
        self._vocab_size = info.vocab_size
        self._ranges = dict.fromkeys(("logprobs", "prompt_logprobs"), Range(0, info.max_logprobs))
        self._max_bad_word_tokens = info.max_bad_word_tokens
        self._max_draft_tokens = info.max_draft_tokens
        self._max_scores = info.max_scores
        self._block_size = info.block_size
        self._has_states = any(group.num_states for group in info.cache_groups)

    def check(self, plan: shard_pb2.StepPlan, sequences: Mapping[int, Sequence], highest_seq_id: int) -> None:
        """Checks everything but the step's number and the pool. sequences: those on the shard, by seq_id."""
        new_ids = self._check_new(plan, sequences, highest_seq_id) if plan.forks or plan.admits else frozenset[int]()
        released = frozenset[int]()
        if plan.release_seq_ids:
            released = self._check_releases(plan, sequences, new_ids)
        self._check_run(plan, sequences, new_ids, released)

    def _check_new(
        self, plan: shard_pb2.StepPlan, sequences: Mapping[int, Sequence], highest_seq_id: int
    ) -> frozenset[int]:
        if max(len(plan.forks), len(plan.admits)) > self._max_num_seqs:
            raise malformed(f"{len(plan.forks)} forks and {len(plan.admits)} admits; max_num_seqs {self._max_num_seqs}")
        ids = [fork.child_seq_id for fork in plan.forks] + [admit.seq_id for admit in plan.admits]
        new_ids = frozenset(ids)
        if min(ids) <= highest_seq_id or len(new_ids) != len(ids):
            raise malformed(f"seq_ids {_some(ids)} of forks and admits are not new: {highest_seq_id} has been used")
        for fork in plan.forks:
            self._check_fork(fork, sequences)
        for admit in plan.admits:
            self._check_admit(admit)
        return new_ids

    def _check_fork(self, fork: shard_pb2.Fork, sequences: Mapping[int, Sequence]) -> None:
        what = f"fork of seq_id {fork.parent_seq_id}"
        parent = sequences.get(fork.parent_seq_id)
        if parent is None:
            raise malformed(f"{what}: it is unknown")
        if not fork.appended_token_ids:
            raise malformed(f"{what}: appended_token_ids is empty")
        num_tokens = fork.num_tokens + len(fork.appended_token_ids)
        if not parent.num_prompt_tokens <= num_tokens <= self._max_model_len:
            raise malformed(
                f"{what}: num_tokens and appended_token_ids make {num_tokens} tokens, accepted are "
                f"{parent.num_prompt_tokens} (its prompt) to {self._max_model_len}"
            )
        self._check_token_ids(fork.appended_token_ids, f"{what}: appended_token_ids")

    def _check_admit(self, admit: shard_pb2.Admit) -> None:
        what = f"admit of seq_id {admit.seq_id}"
        num_tokens = len(admit.token_ids)
        if num_tokens > self._max_model_len:
            raise malformed(f"{what}: {num_tokens} token_ids exceed max_model_len {self._max_model_len}")
        if not 0 < admit.num_prompt_tokens <= num_tokens:
            raise malformed(f"{what}: num_prompt_tokens is {admit.num_prompt_tokens} of {num_tokens} token_ids")
        self._check_token_ids(admit.token_ids, f"{what}: token_ids")
        if admit.adapter:
            raise malformed(f"{what}: adapter is not served")
        if admit.num_scores > self._max_scores:
            raise malformed(f"{what}: num_scores {admit.num_scores} exceeds max_scores {self._max_scores}")
        if admit.checkpoints:
            self._check_checkpoints(admit.checkpoints[:], num_tokens, what)
        self._check_stop(admit.stop, what)
        self._check_sampling_params(admit.sampling_params, what)
        if admit.bad_words:
            self._check_bad_words(admit.bad_words, what)

    def _check_checkpoints(self, checkpoints: list[int], num_tokens: int, what: str) -> None:
        if not self._has_states:
            raise malformed(f"{what}: checkpoints of a model without recurrent state")
        block_size = self._block_size
        if checkpoints != sorted({*checkpoints} - {0}) or any(place % block_size for place in checkpoints):
            raise malformed(f"{what}: checkpoints {_some(checkpoints)} are not ascending multiples of {block_size}")
        if checkpoints[-1] >= num_tokens:
            raise malformed(f"{what}: checkpoint {checkpoints[-1]} is not below the {num_tokens} token_ids")

    def _check_stop(self, stop: shard_pb2.StopConditions, what: str) -> None:
        if len(stop.token_ids) > MAX_STOP_TOKENS:
            raise malformed(f"{what}: {len(stop.token_ids)} stop.token_ids, accepted are {MAX_STOP_TOKENS}")
        self._check_token_ids(stop.token_ids, f"{what}: stop.token_ids")
        for name, value in (("max_tokens", stop.max_tokens), ("min_tokens", stop.min_tokens)):
            if value > self._max_model_len:
                raise malformed(f"{what}: stop.{name} {value} exceeds max_model_len {self._max_model_len}")

    def _check_sampling_params(self, params: inference_pb2.SamplingParams, what: str) -> None:
        given = {descriptor.name for descriptor, _ in params.ListFields()}
        if missing := RESOLVED - given:
            raise malformed(f"{what}: sampling_params lacks {', '.join(sorted(missing))}")
        for name, description in faults(params, self._vocab_size, self._ranges):
            raise malformed(f"{what}: sampling_params.{name} {description}")

    def _check_bad_words(self, bad_words: Items[inference_pb2.TokenIds], what: str) -> None:
        if len(bad_words) > MAX_BAD_WORDS:
            raise malformed(f"{what}: {len(bad_words)} bad_words, accepted are {MAX_BAD_WORDS}")
        if sum(len(word.ids) for word in bad_words) > self._max_bad_word_tokens:
            raise malformed(f"{what}: bad_words have more tokens than the {self._max_bad_word_tokens} that are served")
        for word in bad_words:
            if not word.ids:
                raise malformed(f"{what}: bad_words holds an empty one")
            self._check_token_ids(word.ids, f"{what}: bad_words")

    def _check_token_ids(self, token_ids: Items[int], what: str) -> None:
        # A slice is a list, which is faster to look through than a field of a message.
        if token_ids and (highest := max(token_ids[:])) >= self._vocab_size:
            raise malformed(f"{what}: {highest} is not below the vocabulary size {self._vocab_size}")

    def _check_releases(
        self, plan: shard_pb2.StepPlan, sequences: Mapping[int, Sequence], new_ids: frozenset[int]
    ) -> frozenset[int]:
        """Checks release_seq_ids. A child that this plan forks may be released by it too."""
        ids = plan.release_seq_ids
        if len(ids) > len(sequences) + len(plan.forks):
            raise malformed(f"{len(ids)} release_seq_ids are more than the sequences there are")
        released = frozenset(ids)
        if len(released) != len(ids):
            raise malformed("release_seq_ids holds a seq_id twice")
        unknown = released - sequences.keys()
        if unknown:
            unknown -= {fork.child_seq_id for fork in plan.forks} & new_ids
        if unknown:
            raise malformed(f"release_seq_ids: {_some(unknown)} are unknown")
        return released

    def _check_run(
        self,
        plan: shard_pb2.StepPlan,
        sequences: Mapping[int, Sequence],
        new_ids: frozenset[int],
        released: frozenset[int],
    ) -> None:
        num_rows = len(plan.run_seq_ids)
        if num_rows > self._max_num_seqs:
            raise malformed(f"{num_rows} run_seq_ids exceed max_num_seqs {self._max_num_seqs}")
        if len(plan.run_token_budgets) != num_rows:
            raise malformed(f"{num_rows} run_seq_ids but {len(plan.run_token_budgets)} run_token_budgets")
        if plan.num_draft_tokens:
            if len(plan.num_draft_tokens) != num_rows:
                raise malformed(f"{num_rows} run_seq_ids but {len(plan.num_draft_tokens)} num_draft_tokens")
            if max(plan.num_draft_tokens) > self._max_draft_tokens:
                limit = self._max_draft_tokens
                raise malformed(f"num_draft_tokens {max(plan.num_draft_tokens)} exceeds max_draft_tokens {limit}")
        if plan.run_modes:
            if len(plan.run_modes) != num_rows:
                raise malformed(f"{num_rows} run_seq_ids but {len(plan.run_modes)} run_modes")
            if not _RUN_MODES.issuperset(plan.run_modes):
                raise malformed("run_modes: SAMPLE and SCORE are served")
            if plan.num_draft_tokens and any(
                num and mode == _SCORE for num, mode in zip(plan.num_draft_tokens, plan.run_modes, strict=True)
            ):
                raise malformed("num_draft_tokens: a row in mode SCORE verifies none")
        ids = frozenset(plan.run_seq_ids)
        if len(ids) != num_rows:
            raise malformed("run_seq_ids holds a seq_id twice")
        if not sequences.keys() >= ids:
            unknown = ids - sequences.keys() - new_ids
            if unknown:
                raise malformed(f"run_seq_ids: {_some(unknown)} are unknown")
        if released and not released.isdisjoint(ids):
            raise malformed(f"run_seq_ids: {_some(ids & released)} are released by the same plan")


def _some(ids: Iterable[int], limit: int = 5) -> str:
    """The ids for a message, not more than a few."""
    listed = list(ids)
    return ", ".join(map(str, listed[:limit])) + (", ..." if len(listed) > limit else "")
