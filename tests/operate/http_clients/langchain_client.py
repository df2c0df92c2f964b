"""What LangChain's client gets of a server, as JSON. Arguments: its URL, and a logit_bias without whitespace."""

import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL, COMPACT = f"{sys.argv[1]}/v1", json.loads(sys.argv[2])
QUESTION = "How many months are in a year?"
SERVER: dict[str, Any] = {"model": "demo", "base_url": URL, "api_key": "none", "temperature": 0, "max_retries": 0}


class Animal(BaseModel):
    """An animal."""

    kind: Literal["cat", "dog"]


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """Tells the weather."""
    return f"sunny in {city}"


def told_by(model: ChatOpenAI) -> dict[str, Any]:
    """What one of the two APIs gives."""
    caller = model.bind_tools([weather], tool_choice="weather", strict=True)
    called = caller.invoke(QUESTION)
    whole = None
    for chunk in caller.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    result = weather.invoke(called.tool_calls[0])
    after = model.bind_tools([weather]).invoke([HumanMessage(QUESTION), called, result])
    compact = model.model_copy(update={"extra_body": {"logit_bias": COMPACT}})
    return {
        "text": model.invoke(QUESTION).text,
        "streamed": "".join(chunk.text for chunk in model.stream(QUESTION)),
        "batch": [answer.text for answer in model.batch([QUESTION] * 4)],
        "call": [called.tool_calls[0]["name"], called.tool_calls[0]["args"]["city"]],
        "streamed call": [whole.tool_calls[0]["name"], whole.tool_calls[0]["args"]["city"]],
        "result": result.content,
        "after": after.text,
        "object": compact.with_structured_output(Animal, method="json_schema").invoke(QUESTION).kind,
        "object by call": model.with_structured_output(Animal, method="function_calling", strict=True)
        .invoke(QUESTION)
        .kind,
    }


found = {
    "chat": told_by(ChatOpenAI(**SERVER)),
    "responses": told_by(ChatOpenAI(**SERVER, use_responses_api=True)),
    "completion": OpenAI(**SERVER, max_tokens=3).invoke("The capital of France is"),
}
print(json.dumps(found))
