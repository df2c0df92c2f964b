"""Shard and router together read a model directory's tokenizer as transformers' AutoTokenizer does."""

import json

import pytest
import tokenizer_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire_router.text.tokenizer import Tokenizer
from pagewire_router.text.tokenizer_files import special_tokens
from pagewire_shard.loading.plain_tokenizer import PLAIN_MODEL_TYPES, is_plain
from pagewire_shard.service.model_files import collect_model_files

HARD_TEXTS = [
    "",
    " ",
    "  ",
    " a",
    "a ",
    "\n",
    "\r\n\t ",
    " " * 100,
    "\x00\x01\x7f\x85\xa0",
    "▁",
    "▁▁ a",
    "<0xE4><0x41>",
    "�",
    "a�b",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷🇩",
    "❤️‍🔥",
    "日本語のテキスト、漢字",
    "한국어 텍스트",
    "\u1112\u1161\u11ab",
    "שלום עולם",
    "مرحبا بالعالم \u200f",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "e\u0301 a\u0308\u0323",
    "Z̸̛a̴l̶g̵o",
    "ﬁ ① ㎏ ½ ﷺ",
    "\u200b\u200d\ufeff\u2028",
    "\ue000\U0010ffff",
    "Hello , world . It ' s n't 's we 've we 're I 'm  !  ?",
    "don't  '  ' n' t",
    "x ' . y",
    "İSTANBUL ß",
    "def f(x):\n\treturn x**2  # 3.14159",
    "12345678901234567890",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<s>a</s>",
    "<s> a </s> b",
    "a <turn> b<turn>c",
    "x<tool> y <l>  z",
    "a <new0>b <new1>  c<new2> <new2> d  <new3> e",
    "<mask>",
    "a <mask> b",
    "<bos><eos><pad><unk>",
    "[CLS] a [SEP] [MASK]",
    "<image><start_of_image>",
    "<|im_start|>x<|im_end|>",
    "<listed> x",
    "  <pad2> x",
    "</s></s> </s>",
]
SPECIAL = [
    "<s>",
    "</s>",
    "<turn>",
    "<tool>",
    "<l>",
    "<new1>",
    "<new2>",
    "<mask>",
    "<|im_start|>",
    "[SEP]",
    " ",
    "  ",
    "'",
]
FRAGMENT = st.one_of(
    st.text(max_size=12),
    st.text(" abeé世🙂\n.,'", max_size=12),
    st.text("n'tsvre .,?!mx", max_size=8),
    st.sampled_from(SPECIAL),
    st.sampled_from(HARD_TEXTS),
)
TEXTS = st.lists(st.lists(FRAGMENT, max_size=4).map("".join), min_size=20, max_size=20)


@pytest.fixture(scope="module", autouse=True)
def no_tiktoken_cache():
    """As the shard's command line sets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        yield


@pytest.fixture(scope="module", params=tokenizer_folders.KINDS)
def both(request, tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    tokenizer_folders.KINDS[request.param](folder)
    files = collect_model_files(folder)
    return Tokenizer(files, 600), transformers.AutoTokenizer.from_pretrained(folder), files


def streamed(tokenizer, token_ids, skip):
    detokenizer = tokenizer.detokenizer([], skip_special_tokens=skip, spaces_between_special_tokens=True)
    return "".join([detokenizer.feed([token_id]) for token_id in token_ids]) + detokenizer.flush()


def assert_equal(ours, theirs, text):
    for add_special_tokens in (True, False):
        token_ids = theirs(text, add_special_tokens=add_special_tokens).input_ids
        assert ours.encode_now(text, add_special_tokens=add_special_tokens) == token_ids, text
        for skip in (True, False):
            decoded = theirs.decode(token_ids, skip_special_tokens=skip)
            assert ours.decode(token_ids, skip_special_tokens=skip) == decoded
            assert streamed(ours, token_ids, skip) == decoded


def test_hard_texts_equal_transformers(both):
    for text in HARD_TEXTS:
        assert_equal(both[0], both[1], text)


@settings(max_examples=100, deadline=None)
@given(texts=TEXTS)
def test_any_texts_equal_transformers(both, texts):
    for text in texts:
        assert_equal(both[0], both[1], text)


def decoded_alone(theirs, token_id):
    """As vLLM does for log-probabilities: decode() of one token, with the spaces that a decoder strips put back."""
    raw, text = theirs.convert_ids_to_tokens(token_id), theirs.decode([token_id])
    num_marks, num_spaces = len(raw) - len(raw.lstrip("\u2581")), len(text) - len(text.lstrip(" "))
    return " " * (num_marks - num_spaces) + text


def test_every_token_alone_equals_transformers(both):
    ours, theirs, _ = both
    for token_id in range(len(theirs)):
        piece, decoded = ours.piece(token_id), decoded_alone(theirs, token_id)
        if isinstance(piece, bytes):
            assert "\N{REPLACEMENT CHARACTER}" in decoded
        elif theirs.convert_ids_to_tokens(token_id) == "<0x20>":
            assert piece == " ", "a byte token that is a space; decode() strips it"
        else:
            assert piece == decoded, token_id


def test_special_tokens_equal_transformers(both):
    ours, theirs, files = both
    theirs_by_id = {token_id: token.special for token_id, token in theirs.added_tokens_decoder.items()}
    ours_by_id = {token_id: token.special for token_id, token in ours._backend.get_added_tokens_decoder().items()}
    assert ours_by_id == theirs_by_id
    named = special_tokens(files)
    assert {name: named[name] for name in theirs.special_tokens_map} == theirs.special_tokens_map


def test_no_token_stands_for_more_text_than_the_bound_says(both):
    ours = both[0]
    bound = ours.max_chars_per_token
    if bound is None:
        return
    for text in [*HARD_TEXTS, *(text * 50 for text in HARD_TEXTS)]:
        assert len(text) <= bound * len(ours.encode_now(text, add_special_tokens=False)), text


@pytest.mark.parametrize("model_type", PLAIN_MODEL_TYPES)
def test_where_transformers_is_not_asked_it_would_change_nothing(model_type, tmp_path, monkeypatch):
    tokenizer_folders.plain(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert is_plain(tmp_path)
    ours = json.loads(collect_model_files(tmp_path)["tokenizer.json"])
    monkeypatch.setattr("pagewire_shard.loading.tokenizer_resolver.is_plain", lambda directory: False)
    theirs = json.loads(collect_model_files(tmp_path)["tokenizer.json"])
    # transformers writes a post-processor that adds nothing where there is none.
    added = theirs.pop("post_processor")["single"]
    assert ours.pop("post_processor") is None
    assert added == [{"Sequence": {"id": "A", "type_id": 0}}]
    assert ours == theirs


def test_transformers_is_not_asked_only_where_the_answer_is_known(tmp_path):
    plain = set()
    for name, write in tokenizer_folders.KINDS.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder)
        if is_plain(folder):
            plain.add(name)
    assert plain == {"plain"}
