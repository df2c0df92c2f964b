"""A shard that takes no time: answers step plans as a real one would, without computing anything."""

from dataclasses import dataclass

from pagewire.v1 import shard_pb2

TOKEN = 7


@dataclass(slots=True)
class _Lane:
    """State of a sequence."""

    computed: int
    known: int
    limit: int


class IdealShard:
    """Samples the same token always and stops sequences at max_tokens; caches no prefixes, knows no forks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._lanes: dict[int, _Lane] = {}

    def apply(self, plan: shard_pb2.StepPlan) -> shard_pb2.StepResult:
        """Returns the result that a shard would send."""
        for seq_id in plan.release_seq_ids:
            del self._lanes[seq_id]
        result = shard_pb2.StepResult(step=plan.step)
        for admit in plan.admits:
            limit = admit.num_prompt_tokens + admit.stop.max_tokens
            self._lanes[admit.seq_id] = _Lane(0, len(admit.token_ids), limit)
        admitted = {admit.seq_id for admit in plan.admits}
        for index, (seq_id, budget) in enumerate(zip(plan.run_seq_ids, plan.run_token_budgets, strict=True)):
            if seq_id in admitted:
                result.first_run_indices.append(index)
                result.num_cached_tokens.append(0)
            self._run(self._lanes[seq_id], budget, result)
        used = sum(-(-lane.computed // self._block_size) for lane in self._lanes.values())
        result.free_blocks.append(self._num_blocks - used)
        return result

    def _run(self, lane: _Lane, budget: int, result: shard_pb2.StepResult) -> None:
        lane.computed = min(lane.computed + budget, lane.known)
        samples = lane.computed == lane.known and lane.known < lane.limit
        if samples:
            lane.known += 1
            result.sampled_token_ids.append(TOKEN)
        stopped = lane.known == lane.limit
        result.num_computed_tokens.append(lane.computed)
        result.num_known_tokens.append(lane.known)
        result.num_sampled_tokens.append(int(samples))
        result.stop_reasons.append(shard_pb2.STOP_REASON_LENGTH if stopped else shard_pb2.STOP_REASON_UNSPECIFIED)
        result.next_write_block_shared.append(False)
