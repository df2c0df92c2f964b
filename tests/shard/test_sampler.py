"""The sampler: what an admission writes to a slot's columns, what stages a batch needs, and what is sampled."""

import pytest
import torch
from pagewire.parameter_table import MAX_BAD_WORDS
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import root_digest
from pagewire_common.sampling_params import MAX_LOGIT_BIAS_ENTRIES, with_defaults
from pagewire_kernels.sample import Stage, TokenMasks, columns
from pagewire_kernels.sample.columns import FLOATS, INTS, MAX_BIASES
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.host_transfer import CpuUplink
from pagewire_shard.sampling.sampler import Sampler
from pagewire_shard.slot_tables import SlotTables

VOCAB_SIZE = 50
UPLOAD = CpuUplink().upload


def fill(sampler: Sampler) -> None:
    tables = SlotTables(sampler.tables)
    sampler.fill(tables)
    tables.flush(UPLOAD)


def make_sampler() -> Sampler:
    return Sampler(DeviceState(4, 32, 8, torch.device("cpu")).sequences, VOCAB_SIZE)


def make_sequence(
    slot: int, *, seed: int = 0, min_tokens: int = 0, bad_words: list[list[int]] | None = None, **params: object
) -> Sequence:
    return Sequence(
        seq_id=slot,
        slot=slot,
        token_ids=[1, 2, 3],
        num_prompt_tokens=2,
        root=root_digest(""),
        sampling_params=with_defaults(inference_pb2.SamplingParams(**params)),
        seed=seed,
        stop=shard_pb2.StopConditions(max_tokens=5, min_tokens=min_tokens),
        bad_words=bad_words or [],
    )


def filled(*sequences: Sequence) -> Sampler:
    sampler = make_sampler()
    for sequence in sequences:
        sampler.admit(sequence)
    fill(sampler)
    return sampler


def column(sampler: Sampler, name: str) -> list[float]:
    return sampler._columns.column(name).tolist()


def choose(sampler: Sampler, logits: torch.Tensor, slots: list[int], masks: TokenMasks | None = None) -> torch.Tensor:
    return sampler.choose(logits, UPLOAD(slots), sampler.stages(slots), masks)


def test_every_parameter_arrives_in_the_column_of_its_name() -> None:
    values = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "repetition_penalty": 1.5}
    values |= {"presence_penalty": 0.75, "frequency_penalty": -0.5}
    sampler = filled(make_sequence(1, seed=-(1 << 63) + 3, min_tokens=4, **values))
    for name, value in values.items():
        assert column(sampler, name)[1] == value
    assert column(sampler, "seed")[1] == -(1 << 63) + 3
    assert column(sampler, "num_prompt_tokens")[1] == 2
    assert column(sampler, "min_len")[1] == 6
    for other in (0, 2, 3, 4):
        assert [column(sampler, c.name)[other] for c in (*FLOATS, *INTS)] == [c.neutral for c in (*FLOATS, *INTS)]


def test_biases_of_several_sequences_are_written_at_once() -> None:
    largest = {token: token / 16 for token in range(MAX_BIASES)}
    sampler = filled(
        make_sequence(3, logit_bias={5: 1.5, 2: -3}), make_sequence(0), make_sequence(2, logit_bias=largest)
    )
    assert column(sampler, "logit_bias") == [0, 0, MAX_BIASES, 2, 0]
    for slot, expected in ((3, {5: 1.5, 2: -3.0}), (2, largest)):
        token_ids, biases = sampler._columns.entries("logit_bias", slot)
        assert dict(zip(token_ids.tolist(), biases.tolist(), strict=True)) == expected


def test_allowed_tokens_and_bad_words_of_several_sequences_are_written_at_once() -> None:
    bad_words = [[3], [1, 2, 4], [2, 5]]
    sampler = filled(
        make_sequence(3, allowed_token_ids=[0, 31, 32, 49]), make_sequence(0), make_sequence(2, bad_words=bad_words)
    )
    assert column(sampler, "allowed_token_ids") == [0, 0, 0, 4, 0]
    words = sampler._columns.allowed[3].tolist()
    assert [token for token in range(VOCAB_SIZE) if words[token // 32] >> token % 32 & 1] == [0, 31, 32, 49]
    assert column(sampler, "bad_words") == [0, 0, 3, 0, 0]
    assert sampler._columns.bad_words_of(2) == bad_words


def test_rows_sample_what_their_masks_and_their_parameters_both_allow() -> None:
    sampler = filled(
        make_sequence(0, temperature=0),
        make_sequence(1, temperature=0, allowed_token_ids=[3, 5, 7]),
        make_sequence(2, temperature=0, allowed_token_ids=[3, 5], bad_words=[[3, 5], [9, 3]]),
    )
    logits = torch.arange(VOCAB_SIZE, dtype=torch.float32).repeat(3, 1)
    assert choose(sampler, logits.clone(), [0, 1, 2]).tolist() == [49, 7, 5]
    bits = torch.tensor([[1 << 3 | 1 << 7, 1 << 1], [1 << 3, 0]], dtype=torch.int32)
    masks = TokenMasks(bits, torch.tensor([0, 1, -1]))
    assert choose(sampler, logits.clone(), [0, 1, 2], masks).tolist() == [33, 3, 5]
    masks = TokenMasks(bits, torch.tensor([-1, -1, 1]))
    assert choose(sampler, logits.clone(), [0, 1, 2], masks).tolist() == [49, 7, 3]


def test_columns_have_room_for_as_many_biases_and_bad_words_as_a_request_may_have() -> None:
    assert MAX_BIASES == MAX_LOGIT_BIAS_ENTRIES
    assert columns.MAX_BAD_WORDS == MAX_BAD_WORDS


@pytest.mark.parametrize(
    ("params", "stages"),
    [
        ({"temperature": 0}, Stage(0)),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}, Stage(0)),
        ({}, Stage.DRAW),
        ({"temperature": 0, "frequency_penalty": 1}, Stage.PENALTIES),
        ({"temperature": 0, "repetition_penalty": 1.1}, Stage.PENALTIES),
        ({"temperature": 0, "min_tokens": 1}, Stage.STOP_MASK),
        ({"logit_bias": {3: 0.5}}, Stage.DRAW | Stage.BIAS),
        ({"temperature": 0, "allowed_token_ids": [3]}, Stage.ALLOWED_TOKENS),
        ({"temperature": 0, "bad_words": [[3]]}, Stage.BAD_WORDS),
    ],
    ids=str,
)
def test_a_batch_needs_the_stages_of_its_rows_and_no_others(params: dict, stages: Stage) -> None:
    sampler = filled(make_sequence(0, temperature=0), make_sequence(1, **params), make_sequence(2, logit_bias={1: 1}))
    assert sampler.stages([0, 1]) == stages
    assert sampler.stages([0]) == Stage(0)


def test_the_next_sequence_of_a_slot_has_nothing_of_the_one_before() -> None:
    sampler = filled(make_sequence(1, temperature=0, logit_bias={7: 100}, presence_penalty=1, logprobs=3, min_tokens=3))
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 4] = 1.0
    tokens, raw = choose(sampler, logits.clone(), [1]), sampler.raw_logits(logits, [1], UPLOAD)
    assert (tokens.tolist(), raw and raw.nums) == ([7], [3])
    sampler.admit(make_sequence(1, temperature=0))
    fill(sampler)
    tokens, raw = choose(sampler, logits.clone(), [1]), sampler.raw_logits(logits, [1], UPLOAD)
    assert (tokens.tolist(), raw, sampler.stages([1])) == ([4], None, Stage(0))


def test_logprobs_are_those_of_the_logits_before_biases() -> None:
    sampler = filled(make_sequence(0), make_sequence(2, temperature=0, logit_bias={9: 100}, logprobs=1))
    logits = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    expected = logits.log_softmax(-1)[1]
    tokens, raw = choose(sampler, logits.clone(), [0, 2]), sampler.raw_logits(logits, [0, 2], UPLOAD)
    assert raw is not None
    assert raw.rows == [1]
    (gathered,) = raw.gather(tokens)
    logprobs, _, top_ids, top_logprobs = gathered.logprobs
    assert tokens[1] == 9
    torch.testing.assert_close(logprobs[0], expected[9])
    assert top_ids[0, 0] == expected.argmax()
    torch.testing.assert_close(top_logprobs[0, 0], expected.max())


def test_what_an_epoch_left_behind_is_not_written() -> None:
    sampler = make_sampler()
    sampler.admit(make_sequence(1, top_k=9))
    sampler.end_epoch()
    fill(sampler)
    assert column(sampler, "top_k") == [0] * 5
