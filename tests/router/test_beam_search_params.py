"""What is checked of BeamSearchParams, and what it comes to."""

import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.protocol import MAX_SCORES
from pagewire_router.admission.beam_search import beam_settings, resolve_beam_search_params
from pagewire_router.admission.validation import Limits, Violations, bound_by_context

VOCAB_SIZE = 500
EOS = 7


def limits(max_scores: int = MAX_SCORES, max_num_seqs: int = 40) -> Limits:
    model = shard_pb2.ShardInfo(
        vocab_size=VOCAB_SIZE,
        max_model_len=100,
        max_num_seqs=max_num_seqs,
        max_scores=max_scores,
        eos_token_ids=[EOS],
    )
    return Limits.of(model, max_n=4, max_logprobs=5)


def violations_of(limits: Limits, **fields: object) -> list[str]:
    """The fields that are refused."""
    found = Violations()
    given = inference_pb2.BeamSearchParams(**{"beam_width": 4, "max_tokens": 9, **fields})
    resolve_beam_search_params(given, limits, found)
    return [violation.field for violation in found.found]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 0),
        ("beam_width", 33),
        ("max_tokens", 0),
        ("n", 0),
        ("n", 5),
        ("min_tokens", 10),
        ("min_tokens", -1),
        ("length_penalty", float("nan")),
        ("length_penalty", -10.5),
        ("early_stopping", 4),
        ("stop_token_ids", list(range(64, 128))),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", 101),
    ],
)
def test_each_bound_is_refused_by_name(name: str, value: object) -> None:
    assert violations_of(limits(), **{name: value}) == [f"beam_search_params.{name}"]


def test_a_token_outside_the_vocabulary_is_refused_by_its_place() -> None:
    assert violations_of(limits(), stop_token_ids=[3, VOCAB_SIZE]) == ["beam_search_params.stop_token_ids[1]"]


def test_the_bounds_themselves_are_accepted() -> None:
    assert not violations_of(limits(), beam_width=32, n=32, min_tokens=9, length_penalty=-10.0, early_stopping=3)


def test_more_beams_than_the_limit_of_n_are_accepted() -> None:
    assert not violations_of(limits(), beam_width=8, n=8)


def test_a_width_is_limited_by_the_sequences_that_shards_hold() -> None:
    assert violations_of(limits(max_num_seqs=6), beam_width=7) == ["beam_search_params.beam_width"]


def test_shards_without_scores_serve_no_beams() -> None:
    assert violations_of(limits(max_scores=0)) == ["beam_search_params"]


def test_what_is_left_out_has_its_default() -> None:
    given = inference_pb2.BeamSearchParams(beam_width=4, max_tokens=500, stop_token_ids=[3])
    params = resolve_beam_search_params(given, limits(), Violations())
    bound_by_context(params, 30, limits())
    settings = beam_settings(given, params, (EOS,), limits())
    assert (settings.width, settings.n, settings.max_tokens, settings.length_penalty) == (4, 4, 70, 1.0)
    assert settings.stop_token_ids == {3, EOS}
    assert settings.num_scores == 4 + 2
    assert (params.detokenize, params.skip_special_tokens, params.include_stop_str_in_output) == (True, True, False)


def test_no_more_scores_are_asked_for_than_there_are_tokens() -> None:
    small = Limits.of(
        shard_pb2.ShardInfo(vocab_size=20, max_model_len=100, max_num_seqs=40, max_scores=20), max_n=4, max_logprobs=5
    )
    given = inference_pb2.BeamSearchParams(beam_width=32, max_tokens=5)
    params = resolve_beam_search_params(given, small, Violations())
    assert beam_settings(given, params, (), small).num_scores == 20
