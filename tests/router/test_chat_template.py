"""Chat templates: chosen and rendered as transformers does with the same files."""

import json

import pytest
import transformers
from pagewire_router.text.chat_template import ChatTemplate, ChatTemplateError, ChatTemplates, Conversation
from pagewire_router.text.tokenizer_files import TokenizerFilesError, chat_templates, special_tokens

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": "Hi 😀 "},
    {"role": "assistant", "content": "Hello  "},
]
MAX_CHARS = 100_000


def write(files, directory):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def reference(files, directory):
    write(files, directory)
    return transformers.AutoTokenizer.from_pretrained(directory)


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
    conversation = Conversation(MESSAGES, tools, {"flag": True}, mode == "prompt", mode == "continue")
    ours = ChatTemplate(template).render(conversation, special_tokens(byte_level_files), MAX_CHARS)
    assert ours == theirs.apply_chat_template(
        MESSAGES,
        chat_template=template,
        tools=tools,
        tokenize=False,
        add_generation_prompt=mode == "prompt",
        continue_final_message=mode == "continue",
        flag=True,
    )


NAMED = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}, {"name": "rag", "template": "C"}]
WHERE_TEMPLATES_ARE = {
    "none": ({}, None),
    "configuration": ({}, "one"),
    "named in the configuration": ({}, NAMED),
    "no default": ({}, NAMED[1:]),
    "only others": ({}, NAMED[2:]),
    "file": ({"chat_template.jinja": b"file"}, "one"),
    "file beside named ones": ({"chat_template.jinja": b"file"}, NAMED),
    "further files": (
        {"chat_template.jinja": b"file", "additional_chat_templates/tool_use.jinja": b"T", "x.jinja": b"x"},
        "one",
    ),
    "further files alone": ({"additional_chat_templates/rag.jinja": b"R"}, "one"),
    "file of a processor": ({"chat_template.json": b'{"chat_template": "P"}'}, "one"),
}


@pytest.mark.parametrize("name", [None, "default", "tool_use", "rag"])
@pytest.mark.parametrize("tools", [None, [], [{"type": "function"}]])
@pytest.mark.parametrize("where", WHERE_TEMPLATES_ARE)
def test_the_template_is_chosen_as_transformers_does(where, tools, name, byte_level_files, tmp_path):
    extra_files, configured = WHERE_TEMPLATES_ARE[where]
    config = json.loads(byte_level_files["tokenizer_config.json"]) | {"chat_template": configured}
    files = {**byte_level_files, "tokenizer_config.json": json.dumps(config).encode(), **extra_files}
    theirs = reference(files, tmp_path)
    ours = ChatTemplates(chat_templates(files), {})
    if name is not None and name not in ours:
        return  # A template that a client sends, however short.
    try:
        expected = theirs.get_chat_template(None if isinstance(theirs.chat_template, str) else name, tools)
    except ValueError:
        with pytest.raises(ChatTemplateError, match=r"no chat template|no default.*rag"):
            ours.choose(name, has_tools=tools is not None)
        return
    assert ours.render(Conversation(MESSAGES, tools), name=name, max_chars=10) == expected


def test_a_processors_template_serves_where_there_is_no_other(byte_level_files):
    config = json.loads(byte_level_files["tokenizer_config.json"]) | {"chat_template": None}
    files = {**byte_level_files, "tokenizer_config.json": json.dumps(config).encode()}
    assert chat_templates({**files, "chat_template.json": b'{"chat_template": "P"}'}) == {"default": "P"}


def test_malformed_templates_in_the_configuration_are_named():
    for value in ("[5]", '[{"name": "x"}]', "7"):
        with pytest.raises(TokenizerFilesError, match=r"tokenizer_config\.json"):
            chat_templates({"tokenizer_config.json": b'{"chat_template": %s}' % value.encode()})


DEEP_BLOCKS = "{% for a in [1] %}" * 25 + "x" + "{% endfor %}" * 25


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat template says"),
        ("{{ messages[0].absent.x }}", "has no attribute"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "underscore"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
        ("{% break %}", "SyntaxError"),
        (DEEP_BLOCKS, "SyntaxError"),
        ("{{ [].x.y" + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "chat template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ('{{ "\\ud800" }}', "surrogate"),
        ('{{ raise_exception("\\ud800") }}', "ud800"),
        ('{{ strftime_now("\\ud800") }}', "surrogate"),
        ("{{ raise_exception('é' * 1000000) }}", r"é\.\.\."),
        ("{{ raise_exception(messages) }}", "chat template"),
        ("{{ raise_exception() }}", "TypeError"),
        ("{{ [1] | map('first') | list }}", "chat template"),
        ("{% include 'x' %}", "chat template"),
        ("{% for a in range(1000) %}{{ 'a' * 1000 }}{% endfor %}", "more than 100000 characters"),
    ],
)
def test_template_errors_say_what_is_wrong(template, message):
    with pytest.raises(ChatTemplateError, match=message) as caught:
        ChatTemplate(template).render(Conversation(MESSAGES), {}, MAX_CHARS)
    assert len(str(caught.value).encode()) < 5000


def test_a_model_without_templates_says_so():
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        ChatTemplates({}, {}).render(Conversation(MESSAGES), max_chars=MAX_CHARS)


LOOP = "{% for m in messages %}{% for part in m.content %}({{ part.type }}:{{ part.text }}){% endfor %}{% endfor %}"
LOOP_OR_TEXT = (
    "{% for m in messages %}{% set c = m['content'] %}{% if c is string %}{{ c }}{% else %}{% for part in c %}"
    "({{ part.text }}){% endfor %}{% endif %}{% endfor %}"
)
IN_A_MACRO = (
    "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "({{ part.text }}){% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}"
)
PRINT = (
    "{% for m in messages %}{{ m.content.split(' ')[0] }}{% for w in m.content.split(' ') %}{% endfor %}{% endfor %}"
)
AS_TEXT = [{"role": "user", "content": "ab"}]
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
AS_PARTS = [{"role": "user", "content": PARTS}]


@pytest.mark.parametrize(
    ("template", "text", "parts"),
    [
        (LOOP, "(text:ab)", "(text:a)(text:b)"),
        (LOOP_OR_TEXT, "ab", "(a)(b)"),
        (IN_A_MACRO, "ab", "(a)(b)"),
        (PRINT, "ab", "a\nb"),
    ],
)
def test_content_is_given_as_the_template_expects_it(template, text, parts):
    chat_template = ChatTemplate(template)
    assert chat_template.render(Conversation(AS_TEXT), {}, MAX_CHARS) == text
    assert chat_template.render(Conversation(AS_PARTS), {}, MAX_CHARS) == parts


def test_content_is_given_in_the_format_that_the_client_wants():
    chat_template = ChatTemplate("{% for m in messages %}{{ m.content | tojson }}{% endfor %}")

    def render(messages, content_format):
        return chat_template.render(Conversation(messages, content_format=content_format), {}, MAX_CHARS)

    assert render(AS_PARTS, "string") == '"a\\nb"'
    assert json.loads(render(AS_TEXT, "openai")) == [{"type": "text", "text": "ab"}]
    assert json.loads(render(AS_PARTS, "openai")) == AS_PARTS[0]["content"]


def test_thoughts_are_text_where_the_template_wants_text():
    content = [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, *PARTS]
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render(Conversation([{"role": "assistant", "content": content}]), {}, MAX_CHARS) == "ab\na\nb"


def test_the_last_text_part_is_continued():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}]
    conversation = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    assert ChatTemplate(LOOP_OR_TEXT + "END").render(conversation, {}, MAX_CHARS) == "(a)(b "
    with pytest.raises(ChatTemplateError, match="no text to continue"):
        ChatTemplate(PRINT).render(
            Conversation([{"role": "assistant", "tool_calls": []}], continue_final_message=True), {}, MAX_CHARS
        )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_every_name_that_templates_know(name):
    template = ChatTemplate("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}")
    messages = [{"role": "assistant", "content": "x", name: "hm"}]
    assert template.render(Conversation(messages), {}, MAX_CHARS) == "hm hm"
