"""Tokenizer against transformers, reading the same files."""

import asyncio

import pytest
import tokenizers
import transformers
from pagewire_router.caller import Caller
from pagewire_router.text.length_bound import max_chars_per_token
from pagewire_router.text.tokenizer import MAX_INLINE_CHARS, Tokenizer
from pagewire_router.text.tokenizer_files import TokenizerFilesError
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

SOMEBODY = Caller.of("ipv4:10.0.0.9:1000")
TEXTS = [
    "",
    "Hello, my name is",
    " leading and  double   spaces ",
    "naïve 😀 👩‍👩‍👧 世界 한국어",
    "<s>special</s> in text<tool>x",
    "line\n\nline\ttab\r\n",
    "▁ <0xE4> \x00",
]


def reference(files, directory):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(params=["byte_level_files", "byte_fallback_files", "word_piece_files"])
def files(request):
    return request.getfixturevalue(request.param)


def test_encoding_and_decoding_equal_transformers(files, tmp_path):
    ours, theirs = Tokenizer(files, 500), reference(files, tmp_path)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            token_ids = ours.encode_now(text, add_special_tokens=add_special_tokens)
            assert token_ids == theirs.encode(text, add_special_tokens=add_special_tokens)
            for skip in (True, False):
                decoded = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(token_ids, skip_special_tokens=skip) == decoded


async def test_long_texts_are_encoded_on_a_thread_with_the_same_result(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    text = "naïve 😀 " * MAX_INLINE_CHARS
    assert await tokenizer.encode(text, add_special_tokens=True, caller=SOMEBODY) == tokenizer.encode_now(
        text, add_special_tokens=True
    )
    tokenizer.close()


async def test_the_event_loop_runs_while_a_long_text_is_encoded(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    encoding = asyncio.ensure_future(tokenizer.encode("naïve 😀 " * 200_000, add_special_tokens=True, caller=SOMEBODY))
    num_turns = 0
    while not encoding.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    # With the interpreter's lock held there would be one or two.
    assert num_turns > 5
    tokenizer.close()


def test_a_token_beyond_the_models_vocabulary_is_encoded_and_decoded(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 10)
    token_ids = tokenizer.encode_now("<tool>", add_special_tokens=False)
    detokenizer = tokenizer.detokenizer(token_ids, skip_special_tokens=True, spaces_between_special_tokens=True)
    assert token_ids[0] >= 10
    assert detokenizer.feed(token_ids) == "<tool>"


UNKNOWN = {"[UNK]": 0, "a": 1}
BYTES = {**UNKNOWN, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
ALPHABET = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}


def backend_of(model, normalizer=None, pre_tokenizer=None, added=None):
    backend = tokenizers.Tokenizer(model)
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    backend.add_tokens(added or [])
    return backend


def byte_fallback(*others, **added):
    return backend_of(models.BPE(BYTES, [], byte_fallback=True), *others, **added)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (backend_of(models.WordLevel(UNKNOWN, unk_token="[UNK]")), "x" * 999),
        (backend_of(models.WordPiece(UNKNOWN, unk_token="[UNK]")), "x" * 999),
        (backend_of(models.Unigram([("[UNK]", 0.0), ("a", -1.0)], unk_id=0)), "x" * 999),
        (backend_of(models.BPE(UNKNOWN, [], unk_token="[UNK]", fuse_unk=True)), "x" * 999),
        (backend_of(models.BPE(UNKNOWN, [])), "x" * 999),
        (backend_of(models.BPE(UNKNOWN, [], unk_token="[UNK]", fuse_unk=True, byte_fallback=True)), "x" * 999),
        (byte_fallback(normalizers.Strip()), " " * 999),
        (byte_fallback(normalizers.Replace(tokenizers.Regex(" +"), "a")), " " * 999),
        (byte_fallback(None, pre_tokenizers.WhitespaceSplit()), " " * 999),
        (backend_of(models.BPE(ALPHABET, []), None, pre_tokenizers.Whitespace()), " " * 999),
        (byte_fallback(added=[AddedToken("<l>", lstrip=True)]), " " * 999 + "<l>"),
        (byte_fallback(added=[AddedToken("<r>", rstrip=True)]), "<r>" + " " * 999),
    ],
)
def test_where_a_token_may_stand_for_any_length_of_text_there_is_no_bound(backend, text):
    assert len(backend.encode(text).ids) <= 1
    assert max_chars_per_token(backend) is None


@pytest.mark.parametrize(
    ("backend", "bound"),
    [
        (byte_fallback(), 6),
        (backend_of(models.BPE(UNKNOWN, [], unk_token="[UNK]")), 5),
        (backend_of(models.BPE(ALPHABET, []), None, pre_tokenizers.ByteLevel()), 1),
        (backend_of(models.BPE(ALPHABET, []), normalizers.NFC(), pre_tokenizers.ByteLevel()), 4),
        (backend_of(models.BPE(ALPHABET, []), normalizers.Replace("----", "-"), pre_tokenizers.ByteLevel()), 4),
    ],
)
def test_where_every_character_has_its_tokens_text_is_bounded(backend, bound):
    assert max_chars_per_token(backend) == bound


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "tokenizer.json cannot be read"),
        ({"tokenizer_config.json": b"["}, "tokenizer_config.json is not JSON"),
        ({"tokenizer_config.json": b"[]"}, "expected an object"),
        ({"chat_template.jinja": b"\xff"}, "chat_template.jinja is not UTF-8"),
    ],
)
def test_broken_files_are_named(files, message, byte_level_files):
    with pytest.raises(TokenizerFilesError, match=message):
        Tokenizer({**byte_level_files, **files}, 500)


async def test_long_texts_have_the_same_tokens_as_short_ones(byte_level_files, byte_fallback_files, word_piece_files):
    text = "Hello, 世界! naïve 😀 and    spaces\n\n<tool>" * 100
    for files in (byte_level_files, byte_fallback_files, word_piece_files):
        tokenizer = Tokenizer(files, 500)
        for add_special_tokens in (True, False):
            expected = tokenizer.encode_now(text, add_special_tokens=add_special_tokens)
            assert await tokenizer.encode(text, add_special_tokens=add_special_tokens, caller=SOMEBODY) == expected
