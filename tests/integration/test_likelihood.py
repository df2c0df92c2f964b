"""Log-likelihoods of texts through the Python client, compared with a transformers model on the same tokens."""

import math

import pytest
import torch
import transformers
from pagewire import Client
from pagewire.errors import InvalidRequest
from pagewire.likelihood import Scorer
from random_models import TEXT
from reference_model import ReferenceModel

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris, the capital of Italy"),
    ("Hello, my name is", " Anna"),
    ("Hello, my name is", " 東京"),
    ("", "The quick brown fox"),
    ("a" * 30, " " + TEXT),
]


@pytest.fixture(scope="module")
def scorer(client: Client) -> Scorer:
    return Scorer(client)


def score(reference: ReferenceModel, token_ids: list[int], num_context: int) -> tuple[float, bool]:
    """What transformers says of the tokens behind the context."""
    with torch.no_grad():
        rows = reference.model(torch.tensor([token_ids])).logits[0, num_context - 1 : -1].log_softmax(-1)
    continuation = torch.tensor(token_ids[num_context:])
    return float(rows.gather(1, continuation[:, None]).sum()), bool((rows.argmax(-1) == continuation).all())


def test_continuations_are_scored_behind_their_contexts(
    scorer: Scorer, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    answers = scorer.loglikelihood(PAIRS)
    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, answers, strict=True):
        whole = tokenizer.encode(context + continuation)
        num_context = len(tokenizer.encode(context.rstrip()))
        if not context:
            whole, num_context = [0, *whole], 1
        expected, is_likeliest = score(reference, whole, num_context)
        assert logprob == pytest.approx(expected, abs=1e-4 * len(whole))
        assert is_greedy == is_likeliest


def test_what_greedy_sampling_yields_is_called_greedy(scorer: Scorer, reference: ReferenceModel) -> None:
    context = [5, 6, 7]
    greedy = reference.generate(context, 6).tokens
    other = [*greedy[:-1], (greedy[-1] + 1) % 400]
    (logprob, is_greedy), (_, other_is_greedy) = scorer.score_tokens([(context, greedy), (context, other)])
    assert (is_greedy, other_is_greedy) == (True, False)
    assert logprob == pytest.approx(score(reference, context + greedy, 3)[0], abs=1e-3)


@pytest.mark.parametrize("max_prompt_tokens", [2047, 40, 3])
def test_a_long_text_is_scored_in_windows_each_token_once(
    scorer: Scorer,
    reference: ReferenceModel,
    tokenizer: transformers.PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    max_prompt_tokens: int,
) -> None:
    monkeypatch.setattr(scorer, "max_prompt_tokens", max_prompt_tokens)
    texts = [TEXT, "a", ""]
    answers = scorer.loglikelihood_rolling(texts)
    for text, answer in zip(texts, answers, strict=True):
        token_ids, size, expected = tokenizer.encode(text), max_prompt_tokens - 1, 0.0
        for start in range(0, len(token_ids), size):
            end = min(start + size, len(token_ids))
            window = ([0, *token_ids])[max(0, end - size) : end + 1]
            expected += score(reference, window, len(window) - (end - start))[0]
        assert answer == pytest.approx(expected, abs=1e-4 * max(1, len(token_ids)))


def test_the_beginning_of_what_is_too_long_is_left_out(
    scorer: Scorer, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "max_prompt_tokens", 6)
    long, longer = ([9, 8, 7, 6, 5, 4, 3], [2, 1]), ([9], [8, 7, 6, 5, 4, 3, 2, 1])
    (first, _), (second, _) = scorer.score_tokens([long, longer])
    assert first == pytest.approx(score(reference, [6, 5, 4, 3, 2, 1], 4)[0], abs=1e-4)
    assert second == pytest.approx(score(reference, [6, 5, 4, 3, 2, 1], 1)[0], abs=1e-4)


def test_generation_takes_the_options_of_lm_eval(scorer: Scorer, client: Client) -> None:
    greedy, cut, sampled = scorer.generate_until(
        [
            ("Hello", {"max_gen_toks": 12}),
            ("Hello", {"until": ["e", ""], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}),
            ("Hello", {"until": "\n\n", "max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "seed": 3}),
        ]
    )
    assert cut == greedy.split("e")[0]
    assert len(client.tokenize(greedy)) > len(client.tokenize(sampled)) > 0
    with pytest.raises((TypeError, InvalidRequest)):
        scorer.generate_until([("Hello", {"num_beams": 4})])


def test_the_token_before_a_text_is_the_models_own_or_the_callers(client: Client) -> None:
    assert Scorer(client).prefix_token_id == 0
    [(default, _)] = Scorer(client).loglikelihood([("", "Hello")])
    [(other, _)] = Scorer(client, prefix_token_id=5).loglikelihood([("", "Hello")])
    assert not math.isclose(default, other)
