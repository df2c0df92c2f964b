"""Writes the scheduler's decisions about sequences into step plans."""

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.block_ledger import BlockLedger
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup, sequence_seed


def add_admit(plan: shard_pb2.StepPlan, sequence: Sequence) -> None:
    """Admits a sequence with the tokens it has."""
    request = sequence.group.request
    params = request.params
    max_tokens = sequence.limit - len(request.prompt_token_ids)
    admit = plan.admits.add(
        seq_id=sequence.seq_id,
        token_ids=sequence.token_ids,
        num_prompt_tokens=len(request.prompt_token_ids),
        cache_salt=request.cache_salt,
        sampling_params=params,
        stop=shard_pb2.StopConditions(
            token_ids=sorted({*params.stop_token_ids, *request.eos_token_ids}),
            # A shard refuses more than the context has room for.
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
        ),
    )
    admit.sampling_params.seed = sequence_seed(params.seed, sequence.index)
    # `stop` has the stop tokens, and no shard looks at text.
    admit.sampling_params.ClearField("stop_token_ids")
    admit.sampling_params.ClearField("stop")
    if request.trace_context is not None:
        admit.trace_context.traceparent = request.trace_context.traceparent
        admit.trace_context.tracestate = request.trace_context.tracestate


def add_fork(plan: shard_pb2.StepPlan, parent: Sequence, child: Sequence, num_tokens: int) -> None:
    """Forks a child that shares the parent's first num_tokens tokens."""
    plan.forks.add(
        parent_seq_id=parent.seq_id,
        child_seq_id=child.seq_id,
        num_tokens=num_tokens,
        appended_token_ids=child.token_ids[num_tokens:],
        seed=sequence_seed(child.group.request.params.seed, child.index),
    )


def fork_children(
    group: SequenceGroup, parent: Sequence, plan: shard_pb2.StepPlan, ledger: BlockLedger, first_seq_id: int
) -> int:
    """Forks a group's unforked sequences if the parent has computed what they share. Returns how many were forked."""
    common = min(sequence.prefill_target for sequence in group.unforked)
    if parent.computed_in_result < common:
        return 0
    partial = common % ledger.block_size != 0
    held = ledger.blocks(common)
    num_forked = len(group.unforked)
    for seq_id, sequence in enumerate(group.unforked, first_seq_id):
        sequence.seq_id = seq_id
        sequence.start(computed=common, known=len(sequence.token_ids), is_exact=True)
        sequence.maybe_shared = partial
        sequence.fork_step = plan.step
        ledger.set(sequence, pledge=held, held=held)
        sequence.prefill_target = len(sequence.token_ids)
        ledger.set(sequence, pledge=ledger.bound(sequence), held=held)
        add_fork(plan, parent, sequence, common)
    group.unforked.clear()
    if partial and not parent.finished:
        parent.maybe_shared = True
        parent.fork_step = plan.step
        ledger.set(parent, pledge=ledger.bound(parent), held=parent.held)
    return num_forked
