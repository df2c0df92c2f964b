"""Tokenizer and chat template against transformers, reading the same files."""

import json

import pytest
import transformers
from pagewire_router.text.chat_template import ChatTemplateError, ChatTemplates
from pagewire_router.text.tokenizer import MAX_INLINE_CHARS, Tokenizer
from pagewire_router.text.tokenizer_files import TokenizerFilesError, chat_templates, special_tokens

TEXTS = [
    "",
    "Hello, my name is",
    " leading and  double   spaces ",
    "naïve 😀 👩‍👩‍👧 世界 한국어",
    "<s>special</s> in text<tool>x",
    "line\n\nline\ttab\r\n",
    "▁ <0xE4> \x00",
]
MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": "Hi 😀 "},
    {"role": "assistant", "content": "Hello  "},
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


TEMPLATES = {
    "loops, trimming, json": (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if loop.index0 == 9 %}{% break %}{% endif %}\n"
        "[{{ m.role }}] {{ m.content | trim }} {{ m.role | tojson }}\n{% endfor %}\n{% if tools %}"
        "{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "generation blocks and namespaces": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{{ ns.n }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    ),
    "further variables": "{{ flag }}{{ missing is defined }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("mode", ["plain", "prompt", "continue"])
def test_rendering_equals_transformers(name, mode, byte_level_files, tmp_path):
    template = TEMPLATES[name]
    theirs = reference(byte_level_files, tmp_path)
    tools = [{"type": "function", "function": {"name": "f<x>", "parameters": {}}}]
    ours = ChatTemplates({}, special_tokens(byte_level_files)).render(
        MESSAGES,
        chat_template=template,
        tools=tools,
        add_generation_prompt=mode == "prompt",
        continue_final_message=mode == "continue",
        template_kwargs={"flag": True},
    )
    assert ours == theirs.apply_chat_template(
        MESSAGES,
        chat_template=template,
        tools=tools,
        tokenize=False,
        add_generation_prompt=mode == "prompt",
        continue_final_message=mode == "continue",
        flag=True,
    )


def test_the_models_template_is_found_where_models_keep_it(byte_level_files):
    config = json.loads(byte_level_files["tokenizer_config.json"])

    def templates(**files):
        return chat_templates({**byte_level_files, **files})

    assert templates() == {"default": config["chat_template"]}
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    configured = json.dumps({**config, "chat_template": named}).encode()
    assert templates(**{"tokenizer_config.json": configured}) == {"default": "A", "tool_use": "B"}
    assert templates(**{"chat_template.json": b'{"chat_template": "C"}'}) == {"default": "C"}
    assert templates(**{"chat_template.jinja": b"D"}) == {"default": "D"}
    chosen = ChatTemplates({"default": "A", "tool_use": "B"}, {})
    assert (chosen.choose(has_tools=False), chosen.choose(has_tools=True)) == ("A", "B")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat template says"),
        ("{{ messages[0].absent.x }}", "has no attribute"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
        (None, "has no chat template"),
    ],
)
def test_template_errors_say_what_is_wrong(template, message):
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplates({}, {}).render(
            MESSAGES,
            chat_template=template,
            tools=[],
            add_generation_prompt=True,
            continue_final_message=False,
            template_kwargs={},
        )
