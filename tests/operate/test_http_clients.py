"""LiteLLM and LangChain on a served model."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from http_clients import Server, compact_bias, demo_server
from operate_tools import OPERATE, ROOT, require_tool, set_up

pytestmark = pytest.mark.operate
ANSWER = "There are twelve months in a year."
CITIES = ("Rome", "Oslo")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with demo_server() as server:
        yield server


def told_by(client: str, *arguments: str) -> dict[str, Any]:
    """What a script of http_clients/ prints."""
    set_up("http_clients")
    python = require_tool(OPERATE / "http_clients" / "venv" / "bin" / "python")
    script = ROOT / "tests" / "operate" / "http_clients" / f"{client}_client.py"
    run = subprocess.run([python, script, *arguments], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_litellm_as_a_client_of_three_apis(server: Server) -> None:
    found = told_by("litellm", server.url)
    for provider in ("openai", "hosted_vllm", "anthropic"):
        told = found[provider]
        assert told["whole"] == told["streamed"]
        assert told["whole"]["text"] == ANSWER
        assert told["whole"]["num_tokens"] > 5
        assert (told["wrong"], told["unknown"]) == ("BadRequestError", "NotFoundError")
        for name in ("call", "streamed call"):
            if name in told:
                ((function, arguments),) = told[name]["calls"]
                assert function == "weather"
                assert arguments["city"] in CITIES
    assert found["text"].startswith(" Paris")
    assert found["response"] == ANSWER


def test_langchain_over_chat_completions_and_responses(server: Server) -> None:
    found = told_by("langchain", server.url, json.dumps(compact_bias()))
    for api in ("chat", "responses"):
        told = found[api]
        assert told["text"] == told["streamed"] == ANSWER
        assert told["batch"] == [ANSWER] * 4
        for name in ("call", "streamed call"):
            function, city = told[name]
            assert (function, city in CITIES) == ("weather", True)
        assert told["result"] == f"sunny in {told['call'][1]}"
        assert told["after"]
        assert {told["object"], told["object by call"]} <= {"cat", "dog"}
    assert found["completion"].startswith(" Paris")
