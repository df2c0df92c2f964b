"""The sink of one request: what it makes of tokens, stops and ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.errors import Aborted
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.output.prompt_output import PromptOutput
from pagewire_router.text.tokenizer import Tokenizer

FINISH = inference_pb2.FinishReason


class Bell:
    def __init__(self):
        self.rings = []

    def notify(self):
        self.rings.append("output")

    def notify_now(self):
        self.rings.append("end")


@pytest.fixture(scope="module")
def tokenizer(byte_level_files):
    return Tokenizer(byte_level_files, 500)


def output_of(tokenizer, bell=None, eos=(1,), **params):
    def detokenizer():
        return tokenizer.detokenizer([], skip_special_tokens=True, spaces_between_special_tokens=True)

    resolved = with_defaults(inference_pb2.SamplingParams(**params))
    return OutputBuffer(resolved, 5, eos, detokenizer, bell or Bell())


def test_tokens_gather_until_they_are_taken(tokenizer):
    bell = Bell()
    output = output_of(tokenizer, bell)
    for token_id in tokenizer.encode_now("Hello world", add_special_tokens=False):
        assert not output.on_tokens(0, [token_id], None)
    (message,) = output.take()
    assert message.text == "Hello world"
    assert list(message.token_ids) == tokenizer.encode_now("Hello world", add_special_tokens=False)
    assert output.take() == []
    assert set(bell.rings) == {"output"}


def test_each_sequence_has_its_own_text_and_its_own_end(tokenizer):
    bell = Bell()
    output = output_of(tokenizer, bell, n=2)
    output.on_tokens(0, [66], None)
    output.on_tokens(1, [67, 68], None)
    output.on_finished(1, FINISH.FINISH_REASON_LENGTH, None, 4)
    assert not output.is_done
    first, second, end = output.take()
    assert (first.index, second.index, end.index) == (0, 1, 1)
    assert end.usage == inference_pb2.Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=4)
    output.on_finished(0, FINISH.FINISH_REASON_LENGTH, None, 4)
    assert output.is_done
    assert not output.is_all_taken
    assert [message.index for message in output.take()] == [0]
    assert output.is_all_taken
    assert bell.rings[-1] == "end"


def test_held_text_comes_with_the_end(tokenizer):
    output = output_of(tokenizer, stop=("Hello world",))
    for token_id in tokenizer.encode_now("Hello wor", add_special_tokens=False):
        assert not output.on_tokens(0, [token_id], None)
    assert output.take()[0].text == ""
    output.on_finished(0, FINISH.FINISH_REASON_LENGTH, None, 0)
    delta, end = output.take()
    assert delta.text == "Hello wor"
    assert end.WhichOneof("stop_reason") is None


def test_stop_strings_count_only_after_min_tokens(tokenizer):
    token_ids = tokenizer.encode_now("a a a", add_special_tokens=False)
    output = output_of(tokenizer, stop=("a",), min_tokens=len(token_ids) - 1)
    assert [output.on_tokens(0, [token_id], None) for token_id in token_ids][-2:] == [False, True]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab é", min_size=1, max_size=12),
    stops=st.lists(st.text("ab é", min_size=1, max_size=4), min_size=1, max_size=3),
    min_tokens=st.integers(0, 12),
    chunk=st.integers(1, 4),
    include=st.booleans(),
)
def test_a_stop_string_ends_after_the_first_min_tokens_wherever_it_begins(
    tokenizer, text, stops, min_tokens, chunk, include
):
    token_ids = tokenizer.encode_now(text, add_special_tokens=False)
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    # Only the text that is certain after min_tokens counts: an unfinished character comes with its last token.
    detokenizer = tokenizer.detokenizer([], skip_special_tokens=True, spaces_between_special_tokens=True)
    num_passed_over = len(detokenizer.feed(token_ids[:min_tokens]))
    expected, matched = text, None
    for end in range(num_passed_over + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            matched = max(found, key=len)
            expected = text[: end if include else end - len(matched)]
            break
    output = output_of(tokenizer, stop=tuple(stops), min_tokens=min_tokens, include_stop_str_in_output=include)
    sent, stopped = "", False
    for start in range(0, len(token_ids), chunk):
        stopped = output.on_tokens(0, token_ids[start : start + chunk], None)
        sent += "".join([message.text for message in output.take()])
        assert expected.startswith(sent)
        if stopped:
            break
    output.on_finished(0, FINISH.FINISH_REASON_STOP, None, 0)
    *deltas, end = output.take()
    assert sent + "".join([message.text for message in deltas]) == expected
    assert stopped == (matched is not None)
    assert end.stop_string == (matched or "")


def test_tokens_behind_a_stop_string_are_not_output(tokenizer):
    """A step that verifies draft tokens yields several tokens at once."""
    a, b, c = (tokenizer.encode_now(letter, add_special_tokens=False)[0] for letter in "abc")
    output = output_of(tokenizer, stop=("b",), logprobs=0)
    logprobs = [shard_pb2.SequenceLogprobs(logprob=-1.0, rank=1) for _ in range(3)]
    assert output.on_tokens(0, [a, b, c], logprobs)
    output.on_finished(0, FINISH.FINISH_REASON_STOP, None, 0)
    delta, end = output.take()
    assert delta.text == "a"
    assert list(delta.token_ids) == [a, b]
    assert len(delta.logprobs) == 2
    assert end.usage.completion_tokens == 2
    assert end.stop_string == "b"


def test_stop_token_text_is_kept_if_asked_for(tokenizer):
    (letter,) = tokenizer.encode_now("a", add_special_tokens=False)
    for include, text in ((False, ""), (True, "a")):
        output = output_of(tokenizer, stop_token_ids=(letter,), include_stop_str_in_output=include)
        output.on_tokens(0, [letter], None)
        output.on_finished(0, FINISH.FINISH_REASON_STOP, letter, 0)
        delta, end = output.take()
        assert delta.text == text
        assert list(delta.token_ids) == [letter]
        assert end.stop_token_id == letter


def test_logprobs_stand_beside_their_tokens(tokenizer):
    output = output_of(tokenizer, logprobs=2)
    logprobs = [
        shard_pb2.SequenceLogprobs(logprob=-0.5, rank=2, top_token_ids=[8, 66], top_logprobs=[-0.25, -0.5]),
        shard_pb2.SequenceLogprobs(logprob=-1, rank=1, top_token_ids=[67, 9], top_logprobs=[-1, -2]),
    ]
    output.on_tokens(0, [66, 67], logprobs)
    entries = output.take()[0].logprobs
    assert [(entry.token_id, entry.logprob, entry.rank) for entry in entries] == [(66, -0.5, 2), (67, -1.0, 1)]
    assert list(entries[0].top_token_ids) == [8, 66]
    assert list(entries[1].top_logprobs) == [-1.0, -2.0]


def test_a_failure_is_kept_for_the_call(tokenizer):
    output = output_of(tokenizer)
    error = Aborted("ended from outside")
    output.on_failed(error)
    assert output.is_done
    assert output.error is error


def test_tokens_wait_for_the_last_log_probability_of_the_prompt():
    params = with_defaults(inference_pb2.SamplingParams(n=2, prompt_logprobs=0))
    output = OutputBuffer(params, 3, (1,), None, Bell(), prompt=PromptOutput([4, 5, 6], None))
    output.on_tokens(1, [7], None)  # It runs on another shard group, which was faster.
    assert output.take() == []
    output.on_prompt_scores(shard_pb2.PromptScores(first_position=1, logprobs=[-1.0], ranks=[3]))
    assert [entry.token_id for entry in output.take()[0].logprobs] == [5]
    assert output.take() == []
    output.on_prompt_scores(shard_pb2.PromptScores(first_position=2, logprobs=[-2.0], ranks=[4]))
    assert [entry.token_id for entry in output.take()[0].logprobs] == [6]
    assert [delta.token_ids for delta in output.take()] == [[7]]
