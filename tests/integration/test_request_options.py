"""Stops, parallel samples, log-probabilities, chat and text, as clients see them."""

import pytest
import transformers
from pagewire import Client, SamplingParams
from random_models import CHAT_TEMPLATE
from reference_model import ReferenceModel
from streams import GREEDY, TEXT, collect


def test_stop_strings_end_the_text_before_them(client: Client) -> None:
    text = client.complete(TEXT, GREEDY).outputs[0].text
    stop = text[9:13]
    for include in (False, True):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=24,
            ignore_eos=True,
            stop=["never said", stop],
            include_stop_str_in_output=include,
        )
        streamed, tokens, finished = collect(list(client.generate(TEXT, params)))
        assert streamed == text[: text.index(stop)] + (stop if include else "")
        assert (finished.finish_reason, finished.stop_reason) == ("stop", stop)
        assert finished.usage.completion_tokens == len(tokens)
        assert client.complete(TEXT, params).outputs[0].text == streamed


def test_stop_tokens_and_the_models_own_end(client: Client) -> None:
    tokens = client.complete(TEXT, GREEDY).outputs[0].token_ids
    output = client.complete(TEXT, SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=[tokens[5]]))
    assert output.outputs[0].token_ids == tokens[: tokens.index(tokens[5]) + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", tokens[5])


def test_parallel_samples_are_those_of_their_seed(client: Client) -> None:
    params = SamplingParams(n=3, seed=42, max_tokens=16, ignore_eos=True)
    first, second = client.complete(TEXT, params), client.complete(TEXT, params)
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert len({output.text for output in first.outputs}) == 3
    assert [output.token_ids for output in first.outputs] == [output.token_ids for output in second.outputs]
    single = client.complete(TEXT, SamplingParams(seed=42, max_tokens=16, ignore_eos=True))
    assert single.outputs[0].token_ids == first.outputs[0].token_ids
    unseeded = client.complete(TEXT, SamplingParams(max_tokens=16, ignore_eos=True))
    again = client.complete(TEXT, SamplingParams(max_tokens=16, ignore_eos=True, seed=unseeded.seed))
    assert again.outputs[0].token_ids == unseeded.outputs[0].token_ids


def test_logprobs_are_the_reference_models(
    client: Client, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=5)
    output = client.complete(TEXT, params).outputs[0]
    expected = reference.generate(tokenizer.encode(TEXT), 24).logits.log_softmax(-1)
    assert output.logprobs is not None
    assert len(output.logprobs) == 24
    for entry, token, row in zip(output.logprobs, output.token_ids, expected, strict=True):
        assert len(entry) == 5
        assert entry[token].rank == 1
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(row[other]), abs=1e-4)
    assert output.cumulative_logprob == pytest.approx(
        sum(e[t].logprob for e, t in zip(output.logprobs, output.token_ids, strict=True))
    )


def test_chat_renders_the_models_template(client: Client, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Who lives near the sea?"}]
    output = client.chat(messages, GREEDY)
    rendered = "user: Who lives near the sea?\nassistant:"
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == rendered
    assert output.prompt_token_ids == tokenizer.encode(rendered)
    assert output.outputs[0].text == client.complete(rendered, GREEDY).outputs[0].text
    assert (
        client.chat(messages, GREEDY, chat_template=CHAT_TEMPLATE + "!").prompt_token_ids[-1]
        == tokenizer.encode("!")[0]
    )


def test_text_and_tokens_go_back_and_forth(client: Client, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    text = "Zürich, 東京 and 😀"
    assert client.tokenize(text) == tokenizer.encode(text)
    assert client.detokenize(tokenizer.encode(text)) == text


def test_a_character_of_several_tokens_is_never_sent_in_halves(client: Client) -> None:
    """A random model of bytes hits many sequences that are no UTF-8."""
    for seed in range(4):
        events = list(client.generate(TEXT, SamplingParams(max_tokens=64, seed=seed, ignore_eos=True)))
        text, tokens, _ = collect(events)
        assert text == client.detokenize(tokens)
