"""The log-probabilities of a prompt on their way to the client: in parts, and never ahead of its reading."""

import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.grpc_front.response_encoding import encode_responses
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.output.prompt_output import MAX_PART_ENTRIES, PromptOutput


class Bell:
    def __init__(self):
        self.rings = 0

    def notify(self):
        self.rings += 1

    notify_now = notify


def scores(first, num, num_top):
    positions = range(first, first + num)
    return shard_pb2.PromptScores(
        first_position=first,
        logprobs=[-float(position) for position in positions],
        ranks=positions,
        num_top=num_top,
        top_token_ids=[100 * position + i for position in positions for i in range(num_top)],
        top_logprobs=[-float(i) for _ in positions for i in range(num_top)],
    )


def check_entry(entry, position, num_top):
    assert (entry.token_id, entry.logprob, entry.rank) == (7 + position, -position, position)
    assert list(entry.top_token_ids) == [100 * position + i for i in range(num_top)]
    assert list(entry.top_logprobs) == [-i for i in range(num_top)]


@pytest.mark.parametrize(("num_top", "num_parts"), [(0, 1), (20, 2), (3000, 100)])
def test_parts_hold_a_bounded_number_of_them_in_order(num_top, num_parts):
    output = PromptOutput([7 + position for position in range(101)], None)
    output.append(scores(1, 30, num_top))
    output.append(scores(31, 70, num_top))
    position, parts = 1, 0
    while output.has_output:
        part = output.take()
        assert part.first_position == position
        assert len(part.logprobs) == 1 or sum(1 + len(e.top_token_ids) for e in part.logprobs) <= MAX_PART_ENTRIES
        [data] = encode_responses([part])
        assert len(data) < 1 << 20
        assert inference_pb2.GenerateResponse.FromString(data).prompt_logprobs == part
        for entry in part.logprobs:
            check_entry(entry, position, num_top)
            position += 1
        parts += 1
    assert (position, parts) == (101, num_parts)


def test_a_character_may_begin_in_the_token_that_has_no_log_probability():
    pieces = [b"\xc3", b"\xa9", " a"]
    output = PromptOutput([0, 1, 2], pieces.__getitem__)
    output.append(
        shard_pb2.PromptScores(first_position=1, logprobs=[-1, -2], ranks=[1, 1], num_top=1, top_token_ids=[1, 2])
    )
    entries = output.take().logprobs
    assert [entry.token_text for entry in entries] == ["é", " a"]
    assert [list(entry.top_token_texts) for entry in entries] == [["é"], [" a"]]


def test_all_parts_come_before_the_first_delta_one_for_each_write():
    bell = Bell()
    prompt = PromptOutput(list(range(7, 508)), None)
    params = with_defaults(inference_pb2.SamplingParams(prompt_logprobs=20))
    output = OutputBuffer(params, 501, (1,), None, bell, prompt=prompt)
    output.on_prompt_scores(scores(1, 500, 20))
    output.on_tokens(0, [5], None)
    output.on_finished(0, inference_pb2.FINISH_REASON_LENGTH, None, 0)
    position = 1
    while position < 501:
        rings = bell.rings
        [part] = output.take()
        assert bell.rings == rings + 1, "the writer is told that there is more"
        assert part.first_position == position
        position += len(part.logprobs)
        assert not output.is_all_taken
    delta, finished = output.take()
    assert delta.token_ids == [5]
    assert finished.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert output.is_all_taken
