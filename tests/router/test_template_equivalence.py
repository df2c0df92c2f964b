"""Conversations drawn at random, rendered as transformers renders them, over templates with what real ones use.

Each conversation goes the whole way: as the Python client sends it, over the wire's bytes, through the router's reading
and rendering.
"""

import json
import string

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pagewire.prompts import fill_chat
from pagewire.v1 import inference_pb2
from pagewire_router.admission.conversation import read_conversation
from pagewire_router.text.chat_template import ChatTemplateError, ChatTemplates
from pagewire_router.text.tokenizer_files import chat_templates, special_tokens

# Tools as JSON in a system turn, calls and results in turns of their own, reasoning of the last turns alone.
CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = '' %}
    {%- if message.content is string %}{%- set content = message.content %}{%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}
            {{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
# Special tokens, dates, defaults, tools within the first user turn, and errors of the template's own.
HEADERS = """
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- set date_string = strftime_now("%Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today: " + date_string + "\\n" + system_message + eos_token }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>' + message['content'] | trim + eos_token }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>' }}{%- endif %}
"""
# Content as text or parts, alternating roles, macros.
PARTS = """
{%- macro show(content) -%}
    {%- if content is string -%}{{ content | trim }}
    {%- elif content is iterable -%}
        {%- for item in content -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' }}{{ show(message['content']) }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
# Schemas walked key by key; loop controls; generation marks; filters.
SCHEMAS = """
{%- macro type_of(schema) -%}
    {%- if schema.type is string -%}{{ schema.type | upper }}
    {%- elif schema.type -%}{{ schema.type | join(' | ') }}{%- else -%}any{%- endif -%}
{%- endmacro -%}
{% for tool in tools or [] %}
// {{ tool.function.description | default('none', true) }}
type {{ tool.function.name }} = {
{% for name, schema in tool.function.parameters.properties.items() %}
{% if loop.index0 == 3 %}{% break %}{% endif %}
{% if name.startswith('_') %}{% continue %}{% endif %}
  {{ name }}{{ '' if name in (tool.function.parameters.required or []) else '?' }}: {{ type_of(schema) }},
  // {{ schema | tojson(sort_keys=true) }} {{ schema.items() | list | length }} {{ schema.keys() | join(',') }}
{% endfor %}
}
{% endfor %}
{% for message in messages | rejectattr('role', 'equalto', 'system') %}
{% if message.role == 'assistant' %}
{% generation %}{{ message.content | default('', true) }}{{ message.tool_calls | default([]) | tojson }}
{% endgeneration %}
{% elif message.content is defined %}
{{ message.role | capitalize }}[{{ message.name | default('-') }}]: {{ message.content | string | indent(2) }}
{{ message.tool_call_id }}{{ message | dictsort | map('first') | list }}
{% endif %}
{% endfor %}
{{ documents | tojson }}{{ dict(a=1, **{'b': extra}) | tojson if extra is defined }}{{ '>' if add_generation_prompt }}
"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "parts": PARTS, "schemas": SCHEMAS}
NUM_EXAMPLES = 42

TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["", "  two\n\nlines ", "<think>\nhm\n</think>\n\nyes", "<b>&'\"</b>", "😀 naïve", "{{ x }}{% y %}"]
)
NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object"])


@st.composite
def schemas(draw):
    """The JSON schema of one property, its keys in any order."""
    keys = {
        "type": draw(TYPES | st.lists(TYPES, min_size=1, max_size=2)),
        "description": draw(TEXT),
        "default": draw(JSON),
        "enum": draw(st.lists(SCALARS, max_size=3)),
        "title": draw(TEXT),
    }
    chosen = draw(st.lists(st.sampled_from(list(keys)), unique=True))
    return {key: keys[key] for key in ["type", *chosen]} if draw(st.booleans()) else {k: keys[k] for k in chosen}


@st.composite
def tools(draw):
    properties = draw(st.dictionaries(NAMES, schemas(), max_size=4))
    parameters = {"type": "object", "properties": properties}
    if draw(st.booleans()):
        parameters = {"required": draw(st.lists(NAMES, max_size=2)), **parameters}
    function = {"parameters": parameters, "name": draw(NAMES)}
    if draw(st.booleans()):
        function = {"description": draw(TEXT), **function, "strict": draw(st.booleans())}
    return {"type": "function", "function": function}


@st.composite
def calls(draw):
    arguments = draw(OBJECTS | OBJECTS.map(json.dumps))
    function = {"name": draw(NAMES), "arguments": arguments}
    return {"id": draw(NAMES), "type": "function", "function": function}


@st.composite
def assistant_turns(draw):
    message = {"role": "assistant", "content": draw(TEXT | st.none())}
    if draw(st.booleans()):
        message["tool_calls"] = draw(st.lists(calls(), max_size=2) | st.none())
    if draw(st.booleans()):
        message[draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = draw(TEXT)
    return dict(draw(st.permutations(list(message.items()))))


USER_TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer"]), "content": TEXT}, optional={"name": NAMES, "extra": JSON}
)
TOOL_TURNS = st.fixed_dictionaries(
    {"role": st.just("tool"), "tool_call_id": NAMES, "content": TEXT}, optional={"name": NAMES}
)
TURNS = USER_TURNS | assistant_turns() | TOOL_TURNS


@st.composite
def prompts(draw):
    """A conversation as users of the client write it."""
    prompt = {"messages": draw(st.lists(TURNS, min_size=1, max_size=5))}
    if draw(st.booleans()):
        prompt["tools"] = draw(st.lists(tools(), max_size=3) | st.none())
    kwargs = {"enable_thinking": st.booleans(), "extra": JSON, "documents": st.lists(OBJECTS, max_size=2)}
    prompt["chat_template_kwargs"] = draw(st.fixed_dictionaries({}, optional=kwargs))
    ending = draw(st.sampled_from(["add_generation_prompt", "continue_final_message", None]))
    prompt["add_generation_prompt"] = ending == "add_generation_prompt"
    prompt["continue_final_message"] = ending == "continue_final_message"
    return prompt


def theirs(tokenizer, prompt, name):
    """The text and its token ids; None: transformers or the template refuses."""
    options = {key: value for key, value in prompt.items() if key not in ("messages", "chat_template_kwargs")}
    options |= prompt["chat_template_kwargs"]
    try:
        text = tokenizer.apply_chat_template(prompt["messages"], chat_template=name, tokenize=False, **options)
    except Exception:
        return None
    return text, tokenizer(text, add_special_tokens=False).input_ids


def ours(templates, prompt, name):
    sent = inference_pb2.ChatPrompt()
    fill_chat(sent, prompt)
    received = inference_pb2.ChatPrompt.FromString(sent.SerializeToString())
    try:
        return templates.render(read_conversation(received), name=name, max_chars=1_000_000)
    except ChatTemplateError:
        return None


@pytest.fixture(scope="module")
def model(byte_level_files, tmp_path_factory):
    """A tokenizer with all the templates, for transformers and for us."""
    directory = tmp_path_factory.mktemp("templates")
    files = {**byte_level_files, "chat_template.jinja": CHATML.encode()}
    files |= {f"additional_chat_templates/{name}.jinja": text.encode() for name, text in TEMPLATES.items()}
    files["additional_chat_templates/tool_use.jinja"] = SCHEMAS.encode()
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, ChatTemplates(chat_templates(files), special_tokens(files))


@pytest.mark.parametrize("name", [*TEMPLATES, None])
@given(several=st.lists(prompts(), min_size=5, max_size=5))
@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_conversation_is_rendered_as_transformers_renders_it(model, name, several):
    tokenizer, templates = model
    for prompt in several:
        expected, text = theirs(tokenizer, prompt, name), ours(templates, prompt, name)
        assert text == (expected and expected[0])
        if expected is not None:
            assert tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids == expected[1]
