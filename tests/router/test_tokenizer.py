"""Tokenizer against transformers, reading the same files."""

import json

import pytest
import transformers
from pagewire_router.text.tokenizer import MAX_INLINE_CHARS, Tokenizer
from pagewire_router.text.tokenizer_files import TokenizerFilesError

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
            token_ids = ours._encode(text, add_special_tokens)
            assert token_ids == theirs.encode(text, add_special_tokens=add_special_tokens)
            for skip in (True, False):
                decoded = theirs.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(token_ids, skip_special_tokens=skip) == decoded


async def test_long_texts_are_encoded_on_a_thread_with_the_same_result(byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    text = "naïve 😀 " * MAX_INLINE_CHARS
    assert await tokenizer.encode(text, add_special_tokens=True) == tokenizer._encode(text, True)
    tokenizer.close()


def test_special_tokens_of_the_configuration_are_special(byte_level_files, tmp_path):
    config = json.loads(byte_level_files["tokenizer_config.json"])
    config |= {"pad_token": "<pad>", "extra_special_tokens": ["<|user|>"]}
    files = {**byte_level_files, "tokenizer_config.json": json.dumps(config).encode()}
    ours, theirs = Tokenizer(files, 500), reference(files, tmp_path)
    token_ids = theirs.encode("a<pad>b<|user|>c")
    assert ours._encode("a<pad>b<|user|>c", True) == token_ids
    assert (
        ours.decode(token_ids, skip_special_tokens=True) == theirs.decode(token_ids, skip_special_tokens=True) == "abc"
    )


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
