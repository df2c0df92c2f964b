"""Incremental detokenization: the pieces add up to the whole, and no piece ends inside a character."""

import json
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire_router.text.tokenizer import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
TEXT = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_characters=BROKEN), st.sampled_from("😀世é a\n")), max_size=30
)
property_test = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module", params=["byte_level_files", "byte_fallback_files", "word_piece_files"])
def tokenizer(request):
    return Tokenizer(request.getfixturevalue(request.param), 500)


def stream(tokenizer, prompt, token_ids, chunk=1, skip=True, spaces=True):
    detokenizer = tokenizer.detokenizer(prompt, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
    pieces = [detokenizer.feed(token_ids[i : i + chunk]) for i in range(0, len(token_ids), chunk)]
    return [*pieces, detokenizer.flush()]


@property_test
@given(prompt=TEXT, text=TEXT, chunk=st.integers(1, 5), skip=st.booleans())
def test_pieces_add_up_to_the_full_text_after_the_prompt(tokenizer, prompt, text, chunk, skip):
    both = tokenizer.encode_now(prompt + text, add_special_tokens=True)
    # Between any two characters the prompt may end.
    border = len(tokenizer.encode_now(prompt, add_special_tokens=True))
    head, tail = both[:border], both[border:]
    head_text = tokenizer.decode(head, skip_special_tokens=skip)
    if head_text.endswith(BROKEN):
        return
    pieces = stream(tokenizer, head, tail, chunk, skip)
    assert head_text + "".join(pieces) == tokenizer.decode(both, skip_special_tokens=skip)
    assert not any(piece.endswith(BROKEN) for piece in pieces)


@pytest.fixture(scope="module")
def metaspace_files(byte_fallback_files):
    """Byte fallback, but with a decoder that takes a space off the first token: no concatenation."""
    backend = tokenizers.Tokenizer.from_str(byte_fallback_files["tokenizer.json"].decode())
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace(), tokenizers.decoders.Fuse()]
    )
    return {**byte_fallback_files, "tokenizer.json": backend.to_str().encode()}


@pytest.fixture(scope="module")
def byte_level_window_files(byte_level_files):
    """Byte-level BPE with a further step of decoding."""
    description = json.loads(byte_level_files["tokenizer.json"])
    description["decoder"] = {"type": "Sequence", "decoders": [description["decoder"], {"type": "Fuse"}]}
    return {**byte_level_files, "tokenizer.json": json.dumps(description).encode()}


@pytest.fixture(
    scope="module",
    params=[
        "byte_level_files",
        "byte_fallback_files",
        "metaspace_files",
        "byte_level_window_files",
        "word_piece_files",
    ],
)
def any_tokenizer(request):
    return Tokenizer(request.getfixturevalue(request.param), 500)


@property_test
@given(data=st.data(), text=TEXT, skip=st.booleans(), chunk=st.integers(1, 3))
def test_a_stream_that_breaks_anywhere_is_continued_by_its_tokens(any_tokenizer, data, text, skip, chunk):
    token_ids = any_tokenizer.encode_now(text, add_special_tokens=True)
    border = data.draw(st.integers(0, len(token_ids)))
    received = "".join(stream(any_tokenizer, [], token_ids[:border], chunk, skip)[:-1])
    continuation = "".join(stream(any_tokenizer, token_ids[:border], token_ids[border:], chunk, skip))
    assert received + continuation == any_tokenizer.decode(token_ids, skip_special_tokens=skip)


def test_a_prompt_may_end_after_any_byte_of_a_character(any_tokenizer):
    token_ids = any_tokenizer.encode_now("x é€🜁 é€🜁é€🜁 y", add_special_tokens=False)
    whole = any_tokenizer.decode(token_ids, skip_special_tokens=True)
    for border in range(len(token_ids)):
        received = "".join(stream(any_tokenizer, [], token_ids[:border])[:-1])
        assert received + "".join(stream(any_tokenizer, token_ids[:border], token_ids[border:])) == whole


def test_a_replacement_character_of_the_prompt_is_not_repeated(any_tokenizer):
    prompt = any_tokenizer.encode_now(f"x{BROKEN}", add_special_tokens=False)
    assert (
        "".join(stream(any_tokenizer, prompt, any_tokenizer.encode_now("x", add_special_tokens=False)[-1:])).strip()
        == "x"
    )


@property_test
@given(token_ids=st.lists(st.integers(0, 419), max_size=40), chunk=st.integers(1, 5), skip=st.booleans())
def test_any_tokens_of_a_byte_level_tokenizer_add_up(byte_level_files, token_ids, chunk, skip):
    tokenizer = cached_tokenizer(tuple(byte_level_files.items()))
    pieces = stream(tokenizer, [], token_ids, chunk, skip)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@cache
def cached_tokenizer(files):
    return Tokenizer(dict(files), 500)


def test_a_character_is_held_until_its_last_byte(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    token_ids = tokenizer.encode_now("a🜁b", add_special_tokens=False)
    assert len(token_ids) == 5, "the character is to have several tokens"
    assert stream(tokenizer, [], token_ids) == ["a", "", "", "🜁", "b", ""]


def test_an_unfinished_character_comes_as_replacement_at_the_end(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    token_ids = tokenizer.encode_now("a🜁", add_special_tokens=False)[:-1]
    assert stream(tokenizer, [], token_ids)[-1] == BROKEN


def test_a_malformed_run_of_byte_tokens_keeps_its_complete_characters(byte_fallback_files):
    tokenizer = Tokenizer(byte_fallback_files, 500)
    byte = {value: tokenizer._backend.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    token_ids = [byte[b] for b in "🜁".encode()] + [byte[0xE4], tokenizer._backend.token_to_id("a")]
    assert "".join(stream(tokenizer, [], token_ids)) == f"🜁{BROKEN}a"


def test_the_first_word_keeps_its_space_after_a_prompt_and_loses_it_without(byte_fallback_files):
    tokenizer = Tokenizer(byte_fallback_files, 500)
    word = tokenizer.encode_now("Hello", add_special_tokens=False)
    assert "".join(stream(tokenizer, tokenizer.encode_now("Hi", add_special_tokens=True), word)) == " Hello"
    assert "".join(stream(tokenizer, [1], word)) == "Hello"


def test_special_tokens_are_left_out_or_written(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    token_ids = [0, *tokenizer.encode_now("x", add_special_tokens=False), 1]
    assert "".join(stream(tokenizer, [], token_ids, skip=True)) == "x"
    assert "".join(stream(tokenizer, [], token_ids, skip=False)) == "<s>x</s>"


def test_spaces_between_special_tokens_can_be_left_out(word_piece_files):
    tokenizer = Tokenizer(word_piece_files, 500)
    prompt = tokenizer.encode_now("Hello", add_special_tokens=False)
    assert "".join(stream(tokenizer, prompt, [1, 2, 1], skip=False)) == " <s> </s> <s>"
    assert "".join(stream(tokenizer, prompt, [1, 2, 1], skip=False, spaces=False)) == " <s></s><s>"


def test_ids_without_a_token_have_no_text(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    assert "".join(stream(tokenizer, [], [499, *tokenizer.encode_now("x", add_special_tokens=False), 498])) == "x"
