"""Runs the model in every way before the first request, so that no request waits for a kernel to be loaded."""

from pagewire.v1 import shard_pb2
from pagewire.v1.inference_pb2 import SamplingParams
from pagewire_common.block_hash import root_digest
from pagewire_common.sampling_params import with_defaults

from pagewire_shard.engine.runner import RunBatch, Runner
from pagewire_shard.engine.sequence import Sequence

_GREEDY = with_defaults(SamplingParams(temperature=0.0))
_STOP = shard_pb2.StopConditions(max_tokens=2, min_tokens=1, token_ids=[0])


def warm_up(runner: Runner, block_size: int) -> None:
    """Prefills and decodes a short sequence, greedy and sampled, and scores it, in slot 0 and block 0. Leaves nothing
    behind that an admission does not overwrite."""
    for sampling in (_GREEDY, _sampled(num_logprobs=1)):
        prompt = [0] * max(1, min(2, block_size - 1))
        # No more than it needs: a pool of one block has tables of one block.
        blocks = [0] * -(-(len(prompt) + 1) // block_size)
        sequence = Sequence(0, 0, prompt, len(prompt), root_digest(""), sampling, 0, _STOP, blocks=blocks)
        runner.admit(sequence)
        for num_new in (len(prompt), 1):
            batch = RunBatch(copies=[(0, 0)])
            sequence.num_computed_tokens += num_new
            batch.add(sequence, num_new, 1, sequence.num_computed_tokens)
            runner.launch(batch).wait()
    sequence.num_scores, sequence.num_computed_tokens = 1, 0
    runner.admit(sequence)
    sequence.num_computed_tokens = len(prompt)
    batch = RunBatch(scored=[0])
    batch.add(sequence, len(prompt), 0, len(prompt))
    runner.launch(batch).wait()


def run_largest_step(runner: Runner, *, num_seqs: int, num_tokens: int, max_model_len: int, num_logprobs: int) -> None:
    """Runs the step that takes most memory: as many tokens as a plan may compute, for as many sequences as can be held,
    all of which sample and want log-probabilities, of their prompts too. All are in block 0; leaves nothing behind, as
    warm_up.

    Args:
        num_seqs: Slots of the device state, whose block tables are all zero.
    """
    query_lens = [1] * min(num_seqs, num_tokens)
    rest = num_tokens - len(query_lens)
    for row in reversed(range(len(query_lens))):
        more = min(rest, max_model_len - 1)
        query_lens[row] += more
        rest -= more
    batch = RunBatch()
    sampling = _sampled(num_logprobs)
    for slot, num_new in enumerate(query_lens):
        sequence = Sequence(slot, slot, [0] * num_new, num_new, root_digest(""), sampling, 0, _STOP)
        sequence.num_prompt_logprobs = num_logprobs
        runner.admit(sequence)
        sequence.num_computed_tokens = num_new
        batch.add(sequence, num_new, 1, num_new)
    runner.launch(batch).wait()


def _sampled(num_logprobs: int) -> SamplingParams:
    return with_defaults(
        SamplingParams(
            temperature=1.0,
            top_p=0.9,
            top_k=5,
            min_p=0.01,
            presence_penalty=0.1,
            repetition_penalty=1.1,
            logprobs=num_logprobs,
            logit_bias={0: 1.0},
        )
    )
