"""Bad words: the token sequences that they come to, and what is refused."""

import asyncio
import dataclasses
import threading

import pytest
from pagewire_router.admission.bad_words import BadWords, tokenize_bad_words
from pagewire_router.admission.validation import Limits, Violations
from pagewire_router.caller import Caller
from pagewire_router.errors import InvalidRequest
from pagewire_router.text.tokenizer import Tokenizer

LIMITS = Limits(vocab_size=500, max_model_len=64, max_n=8, max_logprobs=20, eos_token_ids=(), max_bad_word_tokens=64)


def tokenize(words: list[str], files: dict[str, bytes], limits: Limits = LIMITS) -> tuple[list, list]:
    """The sequences, and what is wrong."""
    violations = Violations()
    tokenizer = Tokenizer(files, 500)
    try:
        sequences = tokenize_bad_words(words, tokenizer, limits, violations)
        return [tokenizer.decode(list(ids), skip_special_tokens=False) for ids in sequences], violations.found
    finally:
        tokenizer.close()


def test_a_word_is_taken_as_a_text_begins_with_it_and_as_it_follows_a_space(byte_level_files: dict) -> None:
    texts, found = tokenize(["name", "  like"], byte_level_files)
    assert not found
    assert texts == ["name", " name", "like", " like"]


def test_a_form_that_ends_with_another_is_banned_with_it(byte_level_files: dict) -> None:
    # The space before these is a token of its own.
    assert tokenize(["the", "."], byte_level_files)[0] == ["the", "."]


def test_equal_words_count_once(byte_level_files: dict) -> None:
    assert tokenize(["name", " name", "name"], byte_level_files)[0] == ["name", " name"]


@pytest.mark.parametrize(
    ("words", "field", "description"),
    [
        (["a", "  "], "bad_words[1]", "has no tokens of its own"),
        ([chr(33 + i) + chr(80 + i) for i in range(33)], "bad_words", "tokens; accepted: up to 64"),
    ],
    ids=["spaces", "too many tokens"],
)
def test_what_cannot_be_banned_is_refused_by_name(
    words: list[str], field: str, description: str, byte_level_files: dict
) -> None:
    _, found = tokenize(words, byte_level_files)
    assert [violation.field for violation in found] == [f"sampling_params.{field}"]
    assert description in found[0].description


def test_token_sequences_are_limited(byte_level_files: dict) -> None:
    words = [f"n{a}{b}" for a in "abcdefgh" for b in "ijklmnopq"]
    _, found = tokenize(words, byte_level_files, dataclasses.replace(LIMITS, max_bad_word_tokens=10_000))
    assert found[0].description == "come to 144 token sequences; accepted: up to 128"


def test_tokens_beyond_the_models_vocabulary_are_refused(byte_level_files: dict) -> None:
    _, found = tokenize(["ab", "name"], byte_level_files, dataclasses.replace(LIMITS, vocab_size=280))
    assert found[0].field == "sampling_params.bad_words[1]"
    assert "not below the vocabulary size" in found[0].description


async def test_the_prompts_of_a_call_share_one_tokenization_beside_the_event_loop(
    byte_level_files: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, caller, threads = Tokenizer(byte_level_files, 500), Caller.of("ipv4:10.0.0.1:1000"), []
    bad_words, encode_now = BadWords(tokenizer, LIMITS), tokenizer.encode_now

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        threads.append(threading.current_thread())
        return encode_now(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode_now", encode)
    prompts = [asyncio.create_task(bad_words.token_sequences(["name"], caller)) for _ in range(8)]
    await asyncio.sleep(0)
    prompts.pop(0).cancel()  # The others get theirs all the same.
    results = await asyncio.gather(*prompts, bad_words.token_sequences(["name"], caller))
    assert len(set(results)) == 1
    assert len(results[0]) == len(threads) == 2
    assert threading.current_thread() not in threads
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            await bad_words.token_sequences([" "], caller)
    tokenizer.close()
