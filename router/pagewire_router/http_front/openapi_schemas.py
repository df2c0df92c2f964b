"""JSON schemas for /openapi.json of what no table of fields describes: parts of conversations, and all answers."""

from typing import Any

from pagewire_router.http_front.fields import Schema

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
OF_TOKENS: Schema = {"type": "array", "items": COUNT}


def array_of(items: Schema, **more: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **more}


def one_of(*values: str) -> Schema:
    """One of several strings."""
    return {"type": "string", "enum": list(values)}


def nullable(schema: Schema) -> Schema:
    """A value or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def object_with(required: Schema, **optional: Schema) -> Schema:
    """An object. required: schemas by name of the properties that it always has."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def reference(name: str) -> Schema:
    """A schema among the components of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _tagged(kind: str, required: Schema | None = None, **optional: Schema) -> Schema:
    """An object that is told apart by its type."""
    return object_with({"type": one_of(kind), **(required or {})}, **optional)


_JSON_SCHEMA: Schema = {"type": "object", "examples": [{"type": "object", "properties": {"city": {"type": "string"}}}]}
_NAME: Schema = {"type": "string", "minLength": 1}
_TEXT_OR_PARTS: Schema = {"anyOf": [STRING, array_of(_tagged("text", {"text": STRING}))]}

# Conversations of Chat Completions
_FUNCTION_CALL = _tagged("function", {"id": STRING, "function": object_with({"name": _NAME, "arguments": STRING})})
CHAT_MESSAGE: Schema = {
    "anyOf": [
        object_with({"role": one_of("system", "developer", "user"), "content": _TEXT_OR_PARTS}, name=STRING),
        object_with({"role": one_of("assistant"), "content": _TEXT_OR_PARTS}, reasoning_content=STRING),
        object_with(
            {"role": one_of("assistant"), "tool_calls": array_of(_FUNCTION_CALL, minItems=1)},
            content=nullable(STRING),
        ),
        object_with({"role": one_of("tool"), "content": _TEXT_OR_PARTS, "tool_call_id": STRING}),
    ],
    "examples": [{"role": "user", "content": "Hello"}],
}
CHAT_TOOL = _tagged(
    "function", {"function": object_with({"name": _NAME}, description=STRING, parameters=_JSON_SCHEMA, strict=BOOLEAN)}
)
CHAT_TOOL_CHOICE: Schema = {
    "anyOf": [one_of("auto", "none", "required"), _tagged("function", {"function": object_with({"name": _NAME})})]
}
RESPONSE_FORMAT: Schema = {
    "anyOf": [
        _tagged("text"),
        _tagged("json_object"),
        _tagged("json_schema", {"json_schema": object_with({"schema": _JSON_SCHEMA}, name=STRING, strict=BOOLEAN)}),
        _tagged("structural_tag", {"format": OBJECT}),
    ]
}
CHAT_PARTS: Schema = {
    "messages": array_of(CHAT_MESSAGE, minItems=1),
    "tools": array_of(CHAT_TOOL),
    "tool_choice": CHAT_TOOL_CHOICE,
    "response_format": RESPONSE_FORMAT,
}

# Conversations of Responses
_RESPONSES_TEXT: Schema = {
    "anyOf": [STRING, array_of(object_with({"type": one_of("input_text", "output_text"), "text": STRING}))]
}
RESPONSES_PARTS: Schema = {
    "input": {
        "anyOf": [
            STRING,
            array_of(
                {
                    "anyOf": [
                        object_with(
                            {"role": one_of("user", "assistant", "system", "developer"), "content": _RESPONSES_TEXT},
                            type=one_of("message"),
                        ),
                        _tagged("function_call", {"call_id": STRING, "name": _NAME, "arguments": STRING}),
                        _tagged("function_call_output", {"call_id": STRING, "output": STRING}),
                        _tagged("reasoning", summary=array_of(object_with({"text": STRING}))),
                    ]
                },
                minItems=1,
            ),
        ],
        "examples": ["Hello"],
    },
    "tools": array_of(
        _tagged("function", {"name": _NAME}, description=STRING, parameters=_JSON_SCHEMA, strict=BOOLEAN)
    ),
    "tool_choice": {"anyOf": [one_of("auto", "none", "required"), _tagged("function", {"name": _NAME})]},
    "include": array_of(one_of("message.output_text.logprobs", "reasoning.encrypted_content")),
}

# Conversations of Messages
_TEXT_BLOCK = _tagged("text", {"text": STRING})
_TEXT_OR_BLOCKS: Schema = {"anyOf": [STRING, array_of(_TEXT_BLOCK, minItems=1)]}
MESSAGES_PARTS: Schema = {
    "messages": array_of(
        {
            "anyOf": [
                object_with({"role": one_of("user", "assistant", "system"), "content": _TEXT_OR_BLOCKS}),
                object_with(
                    {
                        "role": one_of("user"),
                        "content": array_of(
                            _tagged("tool_result", {"tool_use_id": STRING}, content=_TEXT_OR_BLOCKS), minItems=1
                        ),
                    }
                ),
                object_with(
                    {
                        "role": one_of("assistant"),
                        "content": array_of(
                            {
                                "anyOf": [
                                    _TEXT_BLOCK,
                                    _tagged("thinking", {"thinking": STRING}),
                                    _tagged("redacted_thinking"),
                                    _tagged("tool_use", {"id": STRING, "name": _NAME, "input": OBJECT}),
                                ]
                            },
                            minItems=1,
                        ),
                    }
                ),
            ],
            "examples": [{"role": "user", "content": "Hello"}],
        },
        minItems=1,
    ),
    "system": _TEXT_OR_BLOCKS,
    "tools": array_of(object_with({"name": _NAME, "input_schema": _JSON_SCHEMA}, description=STRING)),
}

# Answers
_TOKEN_COUNTS: Schema = {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}
_CACHED_TOKENS = object_with({"cached_tokens": COUNT})
_USAGE = object_with({**_TOKEN_COUNTS, "prompt_tokens_details": _CACHED_TOKENS})
_USAGE_SO_FAR = object_with(_TOKEN_COUNTS, prompt_tokens_details=_CACHED_TOKENS)
_FINISH_REASON = nullable(one_of("stop", "length", "tool_calls", "abort"))
_STOP_REASON: Schema = {"type": ["string", "integer", "null"]}
_TEXT_LOGPROBS = nullable(
    object_with(
        {
            "tokens": array_of(STRING),
            "token_logprobs": array_of(nullable(NUMBER)),
            "top_logprobs": array_of(nullable({"type": "object", "additionalProperties": NUMBER})),
            "text_offset": array_of(COUNT),
        }
    )
)
_TOKEN_LOGPROB = object_with({"token": STRING, "logprob": NUMBER, "bytes": nullable(array_of(COUNT))})
_CONTENT_LOGPROBS = array_of(
    {**_TOKEN_LOGPROB, "properties": {**_TOKEN_LOGPROB["properties"], "top_logprobs": array_of(_TOKEN_LOGPROB)}}
)
_CHAT_LOGPROBS = nullable(object_with({"content": nullable(_CONTENT_LOGPROBS)}))
_HEAD: Schema = {"id": STRING, "created": INTEGER, "model": STRING}
_TEXT_CHOICE = object_with(
    {
        "index": COUNT,
        "text": STRING,
        "logprobs": _TEXT_LOGPROBS,
        "finish_reason": _FINISH_REASON,
        "stop_reason": _STOP_REASON,
    },
    token_ids=OF_TOKENS,
    prompt_token_ids=nullable(OF_TOKENS),
)
_ANSWERED_MESSAGE = object_with(
    {"role": one_of("assistant"), "content": nullable(STRING), "refusal": {"type": "null"}},
    reasoning_content=nullable(STRING),
    reasoning=nullable(STRING),
    tool_calls=array_of(_FUNCTION_CALL),
)
_CALL_DELTA = object_with(
    {"index": COUNT, "function": object_with({"arguments": STRING}, name=STRING)}, id=STRING, type=one_of("function")
)
_DELTA = object_with(
    {},
    role=STRING,
    content=nullable(STRING),
    reasoning_content=STRING,
    reasoning=STRING,
    tool_calls=array_of(_CALL_DELTA),
)
_CHAT_CHOICE: Schema = {
    "index": COUNT,
    "logprobs": _CHAT_LOGPROBS,
    "finish_reason": _FINISH_REASON,
    "stop_reason": _STOP_REASON,
}
_OUTPUT_ITEM: Schema = {
    "anyOf": [
        _tagged(
            "message",
            {
                "id": STRING,
                "status": STRING,
                "role": one_of("assistant"),
                "content": array_of(
                    _tagged("output_text", {"text": STRING, "annotations": array_of({}), "logprobs": _CONTENT_LOGPROBS})
                ),
            },
        ),
        _tagged(
            "reasoning",
            {
                "id": STRING,
                "status": STRING,
                "summary": array_of({}),
                "content": array_of(_tagged("reasoning_text", {"text": STRING})),
            },
        ),
        _tagged(
            "function_call", {"id": STRING, "status": STRING, "call_id": STRING, "name": STRING, "arguments": STRING}
        ),
    ]
}
_RESPONSES_USAGE = object_with(
    {
        "input_tokens": COUNT,
        "input_tokens_details": object_with({"cached_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": object_with({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
_CONTENT_BLOCK: Schema = {
    "anyOf": [
        _TEXT_BLOCK,
        _tagged("thinking", {"thinking": STRING, "signature": STRING}),
        _tagged("tool_use", {"id": STRING, "name": STRING, "input": {}}),
    ]
}
_STOP = nullable(one_of("end_turn", "max_tokens", "stop_sequence", "tool_use"))
_MESSAGES_USAGE = object_with(
    {"input_tokens": COUNT, "output_tokens": COUNT}, cache_read_input_tokens=COUNT, cache_creation_input_tokens=COUNT
)
_OPENAI_ERROR = object_with({"message": STRING, "type": STRING, "param": nullable(STRING), "code": nullable(STRING)})


def _or_error(chunk: Schema) -> Schema:
    """The data of an event: a chunk, or the error that a stream ends with."""
    return {"anyOf": [chunk, reference("Error")]}


COMPONENTS: dict[str, Schema] = {
    "Error": object_with({"error": _OPENAI_ERROR}),
    "MessagesError": object_with(
        {"type": one_of("error"), "error": object_with({"type": STRING, "message": STRING}), "request_id": STRING}
    ),
    "Model": object_with(
        {"id": STRING, "object": one_of("model"), "created": INTEGER, "owned_by": STRING},
        root=STRING,
        parent=nullable(STRING),
        max_model_len=COUNT,
    ),
    "Models": object_with({"object": one_of("list"), "data": array_of(reference("Model"))}),
    "Version": object_with({"version": STRING}),
    "Completion": object_with(
        {**_HEAD, "object": one_of("text_completion"), "choices": array_of(_TEXT_CHOICE), "usage": _USAGE}
    ),
    "CompletionChunk": _or_error(
        object_with(
            {**_HEAD, "object": one_of("text_completion"), "choices": array_of(_TEXT_CHOICE)},
            usage=nullable(_USAGE_SO_FAR),
        )
    ),
    "ChatCompletion": object_with(
        {
            **_HEAD,
            "object": one_of("chat.completion"),
            "choices": array_of(object_with({**_CHAT_CHOICE, "message": _ANSWERED_MESSAGE}, token_ids=OF_TOKENS)),
            "usage": _USAGE,
        },
        prompt_token_ids=OF_TOKENS,
    ),
    "ChatCompletionChunk": _or_error(
        object_with(
            {
                **_HEAD,
                "object": one_of("chat.completion.chunk"),
                "choices": array_of(object_with({**_CHAT_CHOICE, "delta": _DELTA}, token_ids=OF_TOKENS)),
            },
            usage=nullable(_USAGE_SO_FAR),
            prompt_token_ids=OF_TOKENS,
        )
    ),
    "Response": object_with(
        {
            "id": STRING,
            "object": one_of("response"),
            "created_at": INTEGER,
            "model": STRING,
            "status": one_of("in_progress", "completed", "incomplete", "failed"),
            "output": array_of(_OUTPUT_ITEM),
            "usage": nullable(_RESPONSES_USAGE),
            "error": nullable(object_with({"code": STRING, "message": STRING})),
            "incomplete_details": nullable(object_with({"reason": STRING})),
            "store": BOOLEAN,
            "previous_response_id": {"type": "null"},
        }
    ),
    "ResponseEvent": object_with({"type": STRING, "sequence_number": COUNT}, response=reference("Response")),
    "Message": object_with(
        {
            "id": STRING,
            "type": one_of("message"),
            "role": one_of("assistant"),
            "model": STRING,
            "content": array_of(_CONTENT_BLOCK),
            "stop_reason": _STOP,
            "stop_sequence": nullable(STRING),
            "usage": _MESSAGES_USAGE,
        }
    ),
    "MessageEvent": object_with(
        {
            "type": one_of(
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
                "ping",
                "error",
            )
        }
    ),
    "TokenCount": object_with({"input_tokens": COUNT}),
    "Tokens": object_with(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": OF_TOKENS,
            "token_strs": nullable(array_of(STRING)),
        }
    ),
    "Text": object_with({"prompt": STRING}),
}
"""What answers, and the data of events, hold. More properties may be added."""
