"""Each sampling parameter through generated stubs: what it does to a known distribution, or to a known answer."""

from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch
import transformers
from cluster import Cluster
from pagewire.parameter_table import PARAMETERS
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from reference_model import ReferenceModel
from streams import TEXT

TOKENS = (41, 60, 77, 100)
"""Tokens that may be sampled where distributions are compared."""
NUM_SAMPLES = 384
Complete = Callable[..., inference_pb2.GenerateResult]


@pytest.fixture(scope="module")
def complete(cluster: Cluster) -> Iterator[Complete]:
    """Completes TEXT, or `prompt`, with these parameters: greedy and past the end-of-sequence token unless they say."""
    with grpc.insecure_channel(cluster.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)

        def call(prompt: str = TEXT, **given: object) -> inference_pb2.GenerateResult:
            fields = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | given
            params = inference_pb2.SamplingParams(**fields)
            request = inference_pb2.GenerateRequest(text=prompt, sampling_params=params, return_prompt_token_ids=True)
            return stub.Complete(request, timeout=180)

        yield call


def tokens_of(result: inference_pb2.GenerateResult) -> list[int]:
    (completion,) = result.completions
    return list(completion.token_ids)


# Parameters that change a distribution.

DISTRIBUTIONS: dict[str, dict[str, object]] = {
    "allowed_token_ids": {},
    "temperature": {"temperature": 0.4},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.6},
    "logit_bias": {"logit_bias": {41: 1.5, 60: -100.0, 3: 100.0}},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": -2.0},
}


def probabilities(logits: torch.Tensor, prompt: list[int], generated: list[int], **options: object) -> torch.Tensor:
    """[len(TOKENS)]: how likely each is, by the parameters' definitions."""
    logits = logits.double().clone()
    for token, bias in options.get("logit_bias", {}).items():
        logits[token] += bias
    seen = torch.tensor(sorted({*prompt, *generated}))
    penalty = options.get("repetition_penalty", 1.0)
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    for token, count in Counter(generated).items():
        logits[token] -= options.get("presence_penalty", 0.0) + count * options.get("frequency_penalty", 0.0)
    p = (logits[list(TOKENS)] / options.get("temperature", 1.0)).softmax(-1)
    # A filter keeps the most probable tokens: the first k, those that are probable enough, those that make up a mass.
    ranked, order = p.sort(descending=True)
    is_kept = ranked >= options.get("min_p", 0.0) * ranked[0]
    is_kept &= torch.arange(len(TOKENS)) < options.get("top_k", len(TOKENS))
    is_kept &= ranked.cumsum(0) - ranked < options.get("top_p", 1.0)
    p[order[~is_kept]] = 0.0
    return p / p.sum()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_have_the_distribution_that_a_parameter_asks_for(
    name: str, complete: Complete, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    """Two tokens of each sequence, so that the second sees the first; seeded, so that no run differs."""
    options = DISTRIBUTIONS[name]
    prompt = [*tokenizer.encode(TEXT)]
    with torch.no_grad():
        first_logits = reference.model(torch.tensor([prompt])).logits[0, -1]
        second_logits = reference.model(torch.tensor([[*prompt, token] for token in TOKENS])).logits[:, -1]
    first = probabilities(first_logits, prompt, [], **options)
    expected = {
        (token, other): float(first[i] * second[j])
        for i, token in enumerate(TOKENS)
        for second in [probabilities(second_logits[i], prompt, [token], **options)]
        for j, other in enumerate(TOKENS)
    }
    given = {"temperature": 1.0, "allowed_token_ids": TOKENS, "max_tokens": 2, "n": 128} | options
    sampled = Counter(
        tuple(completion.token_ids)
        for seed in range(NUM_SAMPLES // 128)
        for completion in complete(seed=seed, **given).completions
    )
    assert sampled.keys() <= expected.keys()
    for pair, p in expected.items():
        deviation = (p * (1 - p) / NUM_SAMPLES) ** 0.5
        assert abs(sampled[pair] / NUM_SAMPLES - p) <= 4 * deviation + 1e-9, (pair, sampled[pair], p)
    # The parameter matters: without it this would be another distribution.
    plain = (
        probabilities(first_logits, prompt, []),
        [probabilities(row, prompt, [t]) for t, row in zip(TOKENS, second_logits, strict=True)],
    )
    if options:
        distance = sum(
            abs(expected[token, other] - float(plain[0][i] * plain[1][i][j]))
            for i, token in enumerate(TOKENS)
            for j, other in enumerate(TOKENS)
        )
        assert distance > 0.1


# Parameters that change an answer.


def check_n(complete: Complete) -> None:
    assert [c.index for c in complete(n=3, temperature=1.0).completions] == [0, 1, 2]


def check_seed(complete: Complete) -> None:
    first, again, other = (complete(seed=seed, temperature=1.0) for seed in (5, 5, 6))
    assert first.started.seed == 5
    assert tokens_of(first) == tokens_of(again) != tokens_of(other)
    picked = complete(temperature=1.0)
    assert tokens_of(complete(seed=picked.started.seed, temperature=1.0)) == tokens_of(picked)


def check_stop(complete: Complete) -> None:
    text = complete().completions[0].text
    stopped = complete(stop=[text[5:8]]).completions[0]
    assert (stopped.text, stopped.finished.stop_string) == (text[: text.index(text[5:8])], text[5:8])


def check_include_stop_str_in_output(complete: Complete) -> None:
    text = complete().completions[0].text
    kept = complete(stop=[text[5:8]], include_stop_str_in_output=True).completions[0]
    assert kept.text == text[: text.index(text[5:8]) + 3]


def check_stop_token_ids(complete: Complete) -> None:
    tokens = tokens_of(complete())
    stopped = complete(stop_token_ids=[tokens[4]])
    assert tokens_of(stopped) == tokens[: tokens.index(tokens[4]) + 1]
    assert stopped.completions[0].finished.stop_token_id == tokens[4]


def check_ignore_eos(complete: Complete) -> None:
    eos = 0
    assert tokens_of(complete(logit_bias={eos: 100.0}, ignore_eos=False)) == [eos]
    assert tokens_of(complete(logit_bias={eos: 100.0})) == [eos] * 12


def check_max_tokens(complete: Complete) -> None:
    tokens = tokens_of(complete())
    short = complete(max_tokens=5)
    assert tokens_of(short) == tokens[:5]
    assert short.completions[0].finished.finish_reason == inference_pb2.FINISH_REASON_LENGTH


def check_min_tokens(complete: Complete) -> None:
    stopped = complete(min_tokens=6, stop_token_ids=[41], logit_bias={41: 100.0})
    assert tokens_of(stopped).index(41) == 6
    # A stop string may begin in the first six tokens, but not end there.
    repeated = complete(allowed_token_ids=[41]).completions[0].text
    assert len(tokens_of(complete(allowed_token_ids=[41], stop=[repeated[0]]))) == 1
    assert len(tokens_of(complete(allowed_token_ids=[41], stop=[repeated[0]], min_tokens=6))) == 7


def check_logprobs(complete: Complete) -> None:
    entries = complete(logprobs=3).completions[0].logprobs
    assert [len(entry.top_token_ids) for entry in entries] == [3] * 12
    assert all(entry.rank == 1 and entry.top_logprobs[0] == entry.logprob for entry in entries)


def check_prompt_logprobs(complete: Complete) -> None:
    result = complete(prompt_logprobs=1)
    assert [entry.token_id for entry in result.prompt_logprobs] == list(result.started.prompt_token_ids)[1:]


def check_detokenize(complete: Complete) -> None:
    result = complete(detokenize=False)
    assert (tokens_of(result), result.completions[0].text) == (tokens_of(complete()), "")


def check_skip_special_tokens(complete: Complete) -> None:
    forced = {"logit_bias": {0: 100.0}, "max_tokens": 2}
    assert complete(**forced).completions[0].text == ""
    assert complete(**forced, skip_special_tokens=False).completions[0].text == "<|endoftext|>" * 2


def check_spaces_between_special_tokens(complete: Complete) -> None:
    # A byte-level tokenizer never has such spaces; tests/router/test_detokenizer.py has one that does.
    forced = {"logit_bias": {0: 100.0}, "max_tokens": 2, "skip_special_tokens": False}
    assert complete(**forced, spaces_between_special_tokens=False).completions[0].text == "<|endoftext|>" * 2


def check_bad_words(complete: Complete) -> None:
    text = complete().completions[0].text
    word = max(text.split(), key=len)
    assert word not in complete(bad_words=[word]).completions[0].text


def check_truncate_prompt_tokens(complete: Complete) -> None:
    whole = list(complete().started.prompt_token_ids)
    assert list(complete(truncate_prompt_tokens=2).started.prompt_token_ids) == whole[-2:]
    assert complete("x " * 3000, truncate_prompt_tokens=-1).started.num_prompt_tokens > 100


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_an_answer_is_what_a_parameter_asks_for(name: str, complete: Complete) -> None:
    CHECKS[name](complete)


def test_no_parameter_is_left_out() -> None:
    # Grammars and logits processors have tests of their own.
    assert {*DISTRIBUTIONS, *CHECKS, "structured_outputs", "extra_args"} == {parameter.name for parameter in PARAMETERS}
