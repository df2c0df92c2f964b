"""The texts of tokens beside their log-probabilities."""

import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.output.token_logprobs import TokenLogprobsBuilder
from pagewire_router.text.tokenizer import Tokenizer

HARD_TEXT = "Hello world 🙂😀 naïve 日本語 don't"


@pytest.fixture(scope="module", params=["byte_level_files", "byte_fallback_files", "word_piece_files"])
def tokenizer(request):
    return Tokenizer(request.getfixturevalue(request.param), 500)


def entry(*top_token_ids):
    return shard_pb2.SequenceLogprobs(logprob=-1.0, rank=1, top_token_ids=top_token_ids, top_logprobs=[-1.0])


def built(tokenizer, token_ids, *top_token_ids):
    builder = TokenLogprobsBuilder(tokenizer.piece)
    return [builder.build(token_id, entry(*top_token_ids)) for token_id in token_ids]


def test_no_character_is_lost_or_doubled(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    token_ids = tokenizer.encode_now(HARD_TEXT, add_special_tokens=False)
    texts = [message.token_text for message in built(tokenizer, token_ids)]
    assert "" in texts, "no token ends inside a character, so this shows nothing"
    assert "".join(texts) == HARD_TEXT


def test_tokens_that_are_whole_characters_are_decoded_alone(tokenizer):
    token_ids = tokenizer.encode_now("Hello world", add_special_tokens=False)
    for message in built(tokenizer, token_ids, *token_ids):
        assert list(message.top_token_texts) == [tokenizer.piece(token_id) for token_id in token_ids]
        assert message.token_text == tokenizer.piece(message.token_id)


def test_the_other_candidates_are_read_after_the_same_tokens(byte_fallback_files):
    tokenizer = Tokenizer(byte_fallback_files, 500)
    bytes_of = {tokenizer.piece(token_id): token_id for token_id in range(500)}
    first, last, other = (bytes_of[byte] for byte in (b"\xc3", b"\xa9", b"\xa8"))
    begun, ended, alone = built(tokenizer, [first, last, last], last, other)
    assert (begun.token_text, list(begun.top_token_texts)) == ("", ["", ""]), "nothing comes before it"
    assert (ended.token_text, list(ended.top_token_texts)) == ("é", ["é", "è"])
    assert (alone.token_text, list(alone.top_token_texts)) == ("", ["", ""]), "the character before it is whole"


def output_of(piece_of, **params):
    class Silent:
        def notify(self):
            pass

        def notify_now(self):
            pass

    return OutputBuffer(with_defaults(inference_pb2.SamplingParams(**params)), 5, (1,), None, Silent(), piece_of)


def delta_of(output):
    output.on_tokens(0, [66], [entry(67)])
    (delta,) = output.take()
    return delta


def test_who_wants_token_ids_alone_gets_no_texts():
    (message,) = delta_of(output_of(None, logprobs=1, detokenize=False)).logprobs
    assert not message.HasField("token_text")
    assert not message.top_token_texts
    assert list(message.top_token_ids) == [67]


def test_who_asks_for_no_log_probabilities_pays_nothing_for_texts():
    def refuse(token_id):
        raise AssertionError("a text was asked for")

    output = output_of(refuse)
    output.on_tokens(0, [66], None)
    assert output.take()


async def test_streams_and_whole_answers_carry_the_texts(serve, byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    params = inference_pb2.SamplingParams(max_tokens=3, logprobs=1)
    async with serve() as router:
        _, *deltas, _ = await router.generate(text="a", sampling_params=params)
        streamed = [message for delta in deltas for message in delta.delta.logprobs]
        request = inference_pb2.GenerateRequest(text="a", sampling_params=params)
        whole = (await router.stub.Complete(request)).completions[0].logprobs
    expected = [(tokenizer.piece(token_id), [tokenizer.piece(7)]) for token_id in (40, 41, 42)]
    for messages in (streamed, whole):
        assert [(message.token_text, list(message.top_token_texts)) for message in messages] == expected
