"""Turns the ChatPrompt that a client has sent into the conversation that a template is applied to, and checks it."""

from typing import Any

from google.protobuf import struct_pb2
from pagewire.v1 import inference_pb2
from pagewire_common.json_struct import plain

from pagewire_router.admission.json_text import JsonError, parse_json
from pagewire_router.admission.validation import Violations
from pagewire_router.errors import FieldViolation, InvalidRequest
from pagewire_router.text.chat_template import Conversation

_CONTENT_FORMATS = {
    inference_pb2.CHAT_CONTENT_FORMAT_UNSPECIFIED: "auto",
    inference_pb2.CHAT_CONTENT_FORMAT_STRING: "string",
    inference_pb2.CHAT_CONTENT_FORMAT_OPENAI: "openai",
}
_OWN_FIELDS = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template")
"""Variables of templates that are fields of ChatPrompt, and may not be template arguments too."""
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that are text by another name, and the key that holds it."""
MAX_NAMED_MESSAGES = 16
"""Most wrong messages that a refusal names."""


def check_num_messages(chat: inference_pb2.ChatPrompt, max_model_len: int) -> None:
    """Refuses more messages than the context has tokens, before they are walked. Raises InvalidRequest."""
    num_messages = len(chat.messages)
    if num_messages > max_model_len:
        raise InvalidRequest(
            [
                FieldViolation(
                    "chat.messages", f"holds {num_messages} messages; no more than {max_model_len} fit the context"
                )
            ]
        )


def read_conversation(chat: inference_pb2.ChatPrompt) -> Conversation:
    """The conversation. Raises InvalidRequest with every violation, each by its field."""
    violations = Violations()
    messages = _messages(chat, violations)
    tools = _tools(chat, violations)
    kwargs = _template_kwargs(chat, violations)
    continues = chat.continue_final_message
    if continues and chat.add_generation_prompt:
        violations.add("chat.continue_final_message", "is set together with add_generation_prompt; choose one")
    content_format = _CONTENT_FORMATS.get(chat.content_format)
    if content_format is None:
        violations.add("chat.content_format", f"is {chat.content_format}, which is not known here")
    violations.raise_if_any()
    return Conversation(
        messages=messages,
        tools=tools,
        template_kwargs=kwargs,
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues,
        continue_final_message=continues,
        content_format=content_format or "auto",
    )


def _messages(chat: inference_pb2.ChatPrompt, violations: Violations) -> list[dict[str, Any]]:
    if not chat.messages:
        violations.add("chat.messages", "is empty; a conversation has at least one message")
    messages = []
    for index, message in enumerate(chat.messages):
        if message.HasField("json"):
            messages.append(_read_json_message(message, f"chat.messages[{index}]", violations))
        else:
            messages.append(_read_message(message))
            if not message.role:
                _refuse_role(f"chat.messages[{index}].role", "is empty", violations)
        if len(violations.found) >= MAX_NAMED_MESSAGES:
            break
    return messages


def _read_message(message: inference_pb2.ChatMessage) -> dict[str, Any]:
    fields = {"role": message.role, "content": message.content}
    return {**fields, "name": message.name} if message.HasField("name") else fields


def _read_json_message(message: inference_pb2.ChatMessage, field: str, violations: Violations) -> dict[str, Any]:
    others = [name for name in ("role", "content") if getattr(message, name)]
    if others or message.HasField("name"):
        violations.add(f"{field}.json", f"is given together with {(*others, 'name')[0]}; the JSON holds all of them")
        return {}
    field += ".json"
    given = _read_json(message.json, field, dict, violations)
    if given is None:
        return {}
    # As in transformers: templates can tell that a key is missing, but would write out null.
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    role = fields.get("role")
    if not isinstance(role, str) or not role:
        _refuse_role(
            f"{field}.role", "is missing" if role is None else "is no text" if role else "is empty", violations
        )
    content = fields.get("content", "")
    if isinstance(content, list):
        fields["content"] = [_part(part, f"{field}.content[{index}]", violations) for index, part in enumerate(content)]
    elif not isinstance(content, str):
        violations.add(f"{field}.content", "is neither text nor a list of parts")
    return fields


def _refuse_role(field: str, what: str, violations: Violations) -> None:
    violations.add(field, f'{what}; such as "user", "assistant" or "system"')


def _part(part: Any, field: str, violations: Violations) -> dict[str, Any]:
    """A part of a message's content in the form that templates read: {"type": "text", "text": ...} for every text."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        violations.add(field, 'is no object; accepted: {"type": "text", "text": ...}')
        return {}
    kind = part.get("type", "text")
    key = _TEXT_PARTS.get(kind, kind) if isinstance(kind, str) else ""
    if key not in ("text", "refusal", "thinking"):
        violations.add(field, f"is of type {str(kind)[:100]!r}, which is not served; accepted: text")
    elif not isinstance(part.get(key), str) and not (key == "thinking" and _is_thought(part.get(key))):
        violations.add(f"{field}.{key}", "is no text")
    elif kind in _TEXT_PARTS:
        return {"type": "text", "text": part[key]}
    return part


def _is_thought(value: Any) -> bool:
    """Whether a value is reasoning as Mistral's models have it: a list of text parts."""
    return isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    )


def _tools(chat: inference_pb2.ChatPrompt, violations: Violations) -> list[dict[str, Any]] | None:
    if not chat.HasField("tools_json"):
        return [_read_struct(tool, f"chat.tools[{index}]", violations) for index, tool in enumerate(chat.tools)] or None
    if chat.tools:
        violations.add("chat.tools_json", "is given together with tools; choose one")
        return None
    tools: list[dict[str, Any]] | None = _read_json(chat.tools_json, "chat.tools_json", list, violations)
    for index, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            violations.add(f"chat.tools_json[{index}]", "is no object; a tool is described by a JSON object")
            break
    return tools


def _template_kwargs(chat: inference_pb2.ChatPrompt, violations: Violations) -> dict[str, Any]:
    field = "chat.template_kwargs"
    if chat.HasField("template_kwargs_json"):
        field = "chat.template_kwargs_json"
        if chat.HasField("template_kwargs"):
            violations.add(field, "is given together with template_kwargs; choose one")
            return {}
        kwargs: dict[str, Any] = _read_json(chat.template_kwargs_json, field, dict, violations) or {}
    elif chat.HasField("template_kwargs"):
        kwargs = _read_struct(chat.template_kwargs, field, violations)
    else:
        return {}
    for name in _OWN_FIELDS:
        if name in kwargs:
            violations.add(f"{field}.{name}", f"has a field of its own: chat.{name}")
    documents = kwargs.get("documents")
    is_list = isinstance(documents, list) and all(isinstance(document, dict) for document in documents)
    if documents is not None and not is_list:
        violations.add(f"{field}.documents", "is no list of objects")
    return kwargs


def _read_json(text: str, field: str, kind: type, violations: Violations) -> Any:
    """The value; None if it was refused."""
    try:
        value = parse_json(text)
    except JsonError as error:
        violations.add(field, str(error))
        return None
    if type(value) is not kind:
        violations.add(field, f"is no JSON {'object' if kind is dict else 'array'}")
        return None
    return value


def _read_struct(struct: struct_pb2.Struct, field: str, violations: Violations) -> dict[str, Any]:
    try:
        value: dict[str, Any] = plain(struct)
    except ValueError as error:
        violations.add(field, str(error))
        return {}
    return value
