"""Continues a request whose stream broke, with what its client has of it.

The sequences are admitted with the tokens that were received, as after a preemption. Their output is rebuilt by the
steps that made it: the tokens go through detokenizer and stop strings again, and text that was received is left out. A
stream may have broken between the last token of a sequence and the message that tells its end; such a sequence ends
here. A beam search, which streams nothing before its end, runs again.
"""

import asyncio
import hashlib
from array import array

from pagewire.v1 import inference_pb2

from pagewire_router.admission.validation import Limits, Violations, check_token_ids
from pagewire_router.errors import ModelChanged, PromptChanged
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.request import Request

TOKENS_PER_TURN = 1024
"""Tokens that are detokenized in one turn of the event loop."""


def prompt_digest(token_ids: list[int]) -> bytes:
    """What Started and Resume call a prompt."""
    return hashlib.blake2b(array("I", token_ids), digest_size=16).digest()


def check_model_unchanged(resume: inference_pb2.Resume, model_digest: bytes) -> None:
    """Raises ModelChanged."""
    if resume.model_digest != model_digest:
        known, given = model_digest.hex()[:16], resume.model_digest.hex()[:16]
        raise ModelChanged(
            f"resume.model_digest is {given or 'missing'}; this server serves {known or 'none'}: ask anew"
        )


def check_prompt_unchanged(resume: inference_pb2.Resume, prompt_token_ids: list[int]) -> None:
    """Raises PromptChanged."""
    if resume.prompt_digest != prompt_digest(prompt_token_ids):
        raise PromptChanged("resume.prompt_digest is missing or another prompt's than this request has now: ask anew")


def resume_seed(resume: inference_pb2.Resume, params: inference_pb2.SamplingParams, *, is_given: bool) -> None:
    """Makes the seed of the broken stream that of resolved parameters. Raises InvalidRequest.

    is_given: whether the client has set one itself.
    """
    if is_given and params.seed != resume.seed:
        violations = Violations()
        violations.add("resume.seed", f"is {resume.seed}; accepted: sampling_params.seed, which is {params.seed}")
        violations.raise_if_any()
    params.seed = resume.seed


def check_received(
    resume: inference_pb2.Resume, params: inference_pb2.SamplingParams, num_prompt_tokens: int, limits: Limits
) -> None:
    """Checks what a client says that it has received. Raises InvalidRequest.

    params: resolved, with max_tokens bounded by the context.
    """
    violations = Violations()
    if len(resume.sequences) > params.n:
        violations.add("resume.sequences", f"holds {len(resume.sequences)}; accepted: up to n, {params.n}")
        violations.raise_if_any()
    if resume.num_prompt_logprobs > max(0, num_prompt_tokens - 1):
        name = "resume.num_prompt_logprobs"
        violations.add(name, f"is {resume.num_prompt_logprobs}; accepted: up to {num_prompt_tokens - 1}")
    seen: set[int] = set()
    for i, received in enumerate(resume.sequences):
        name = f"resume.sequences[{i}]"
        if received.index >= params.n or received.index in seen:
            violations.add(f"{name}.index", f"is {received.index}; accepted: each below n, {params.n}, once")
        seen.add(received.index)
        if len(received.token_ids) > params.max_tokens:
            given = f"holds {len(received.token_ids)} ids"
            violations.add(f"{name}.token_ids", f"{given}; accepted: up to max_tokens, {params.max_tokens}")
        else:
            check_token_ids(received.token_ids, f"{name}.token_ids", limits, violations)
    violations.raise_if_any()


async def resume_request(resume: inference_pb2.Resume, request: Request, output: OutputBuffer) -> None:
    """Puts a request and its output where the client has them. Nothing is left to run if the output is done then.

    Raises InvalidRequest if the client has text that its tokens do not make.
    """
    violations = Violations()
    request.shard_loss_token = resume.shard_loss_token
    request.num_received_scores = resume.num_prompt_logprobs
    output.pass_over_prompt(resume.num_prompt_logprobs)
    received: dict[int, list[int]] = {}
    ended: set[int] = set()
    for i, sequence in enumerate(resume.sequences):
        if sequence.finished:
            output.end_resumed(sequence)
            ended.add(sequence.index)
        elif request.beams is not None:
            output.begin_anew(sequence)
        else:
            received[sequence.index] = list(sequence.token_ids)
            if await _rebuild(sequence, request, output):
                ended.add(sequence.index)
            if not output.drop_text(sequence.index, sequence.text_bytes_received):
                given = f"is {sequence.text_bytes_received}"
                accepted = "the length of whole characters of the tokens' text"
                violations.add(f"resume.sequences[{i}].text_bytes_received", f"{given}; accepted: {accepted}")
    violations.raise_if_any()
    if request.beams is None:
        request.received = received
        request.indices = [index for index in request.sequence_indices if index not in ended]
    output.notify_resumed()


async def _rebuild(received: inference_pb2.ResumedSequence, request: Request, output: OutputBuffer) -> bool:
    """Gives the tokens of a sequence to its output. Returns whether they are all of it."""
    token_ids, params = list(received.token_ids), request.params
    output.resume_logprobs(received.index, received.cumulative_logprob)
    is_stopped = False
    for first in range(0, len(token_ids), TOKENS_PER_TURN):
        if first:
            await asyncio.sleep(0)
        is_stopped = output.resume(received.index, token_ids[first : first + TOKENS_PER_TURN])
    last = token_ids[-1] if token_ids else None
    stop_token_id = last if last in params.stop_token_ids else None
    if is_stopped or stop_token_id is not None or last in request.eos_token_ids:
        reason = inference_pb2.FINISH_REASON_STOP
    elif len(token_ids) >= params.max_tokens:
        reason = inference_pb2.FINISH_REASON_LENGTH
    else:
        return False
    output.on_finished(received.index, reason, None if is_stopped else stop_token_id, 0)
    return True
