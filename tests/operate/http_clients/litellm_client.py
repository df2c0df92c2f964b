"""What LiteLLM gets of a server, as JSON. Arguments: its URL."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Otherwise it asks another machine for prices.
import litellm

URL = sys.argv[1]
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How many months are in a year?"}],
    "temperature": 0,
    "api_key": "none",
    "max_tokens": 60,
}
PROVIDERS = {
    "openai": {"model": "openai/demo", "api_base": f"{URL}/v1"},
    "hosted_vllm": {"model": "hosted_vllm/demo", "api_base": f"{URL}/v1"},
    "anthropic": {"model": "anthropic/demo", "api_base": URL},
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
}


def told(answer: Any) -> dict[str, Any]:
    """The text, the calls and the count of an answer."""
    message = answer.choices[0].message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    return {"text": message.content, "calls": calls, "num_tokens": answer.usage.completion_tokens}


def streamed(**fields: Any) -> Any:
    """The answer that the chunks of a stream are built into."""
    options = {"include_usage": True}
    return litellm.stream_chunk_builder(list(litellm.completion(**fields, stream=True, stream_options=options)))


def error_of(call: Callable[[], Any]) -> str:
    """The exception's class."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "none"


found: dict[str, Any] = {}
for provider, where in PROVIDERS.items():
    fields = {**ASK, **where}
    found[provider] = {
        "whole": told(litellm.completion(**fields)),
        "streamed": told(streamed(**fields)),
        "wrong": error_of(lambda fields=fields: litellm.completion(**{**fields, "top_p": 9})),  # type: ignore[misc]
        "unknown": error_of(
            lambda fields=fields: litellm.completion(**{**fields, "model": fields["model"] + "2"})  # type: ignore[misc]
        ),
    }
    if provider != "hosted_vllm":  # It leaves additionalProperties out, and the bundled model adds some without end.
        found[provider]["call"] = told(litellm.completion(**fields, **TOOLS))
        found[provider]["streamed call"] = told(streamed(**fields, **TOOLS))
where = {**PROVIDERS["openai"], "api_key": "none", "temperature": 0}
text = litellm.text_completion(prompt="The capital of France is", max_tokens=3, **where)
found["text"] = text.choices[0].text
response = litellm.responses(input="How many months are in a year?", **where)
found["response"] = response.output[0].content[0].text
print(json.dumps(found))
