"""Writes the scheduler's decisions about sequences into step plans."""

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.sequence import Sequence, sequence_seed


def add_admit(plan: shard_pb2.StepPlan, sequence: Sequence) -> None:
    """Admits a sequence with the tokens it has."""
    request = sequence.group.request
    params = request.params
    admit = plan.admits.add(
        seq_id=sequence.seq_id,
        token_ids=sequence.token_ids,
        num_prompt_tokens=len(request.prompt_token_ids),
        cache_salt=request.cache_salt,
        sampling=shard_pb2.SequenceSampling(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            seed=sequence_seed(params.seed, sequence.index),
            num_logprobs=params.logprobs,
        ),
        stop=shard_pb2.StopConditions(
            token_ids=sorted({*params.stop_token_ids, *request.eos_token_ids}),
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
        ),
    )
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
