"""SmolLM2-135M-Instruct, whose weights were trained, through every front: greedy texts are those of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
import torch
import transformers
from cluster import Service, serve
from operate_tools import OPERATE, set_up
from pagewire import LLM, Client, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODEL = OPERATE / "smollm2" / "model"
FLAGS = ("--dtype", "float32", "--kv-cache-memory", "256MiB", "--served-model-name", "smollm2")
MAX_TOKENS = 24
GREEDY = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "1, 1, 2, 3, 5, 8,", "日本の首都は")
QUESTIONS = ("What is the capital of France?", "Write a short poem about the sea.")


@dataclass(frozen=True)
class Expected:
    """What transformers writes."""

    texts: dict[str, str]
    answers: dict[str, str]
    num_tokens: dict[str, int]
    """Tokens of each question's prompt."""


@pytest.fixture(scope="module")
def expected() -> Expected:
    set_up("smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    @torch.inference_mode()
    def continued(ids: list[int]) -> str:
        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_TOKENS)
        return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))

    chats = {
        question: tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    }
    return Expected(
        texts={prompt: continued(tokenizer(prompt).input_ids) for prompt in PROMPTS},
        answers={question: continued(ids) for question, ids in chats.items()},
        num_tokens={question: len(ids) for question, ids in chats.items()},
    )


@pytest.fixture(scope="module")
def server(expected: Expected) -> Iterator[Service]:
    with serve(MODEL, "--http-port", "0", *FLAGS) as service:
        yield service


@pytest.fixture(scope="module")
def url(server: Service) -> str:
    return f"http://{server.http_address()}"


def test_over_grpc(server: Service, expected: Expected) -> None:
    with Client(server.wait_ready(), timeout_s=120) as client:
        texts = {prompt: client.complete(prompt, GREEDY).outputs[0].text for prompt in PROMPTS}
        answers = {
            question: client.complete({"messages": [{"role": "user", "content": question}]}, GREEDY).outputs[0].text
            for question in QUESTIONS
        }
    assert texts == expected.texts
    assert answers == expected.answers


def test_by_llm(expected: Expected) -> None:
    with LLM(model=str(MODEL), device="cpu", dtype="float32", kv_cache_memory="256MiB") as llm:
        texts = [output.outputs[0].text for output in llm.generate(list(PROMPTS), GREEDY, use_tqdm=False)]
        conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
        answers = [output.outputs[0].text for output in llm.chat(conversations, GREEDY, use_tqdm=False)]
    assert texts == list(expected.texts.values())
    assert answers == list(expected.answers.values())


@pytest.mark.parametrize("stream", [False, True])
def test_over_openai_s_routes(url: str, expected: Expected, stream: bool) -> None:
    greedy: dict[str, Any] = {"model": "smollm2", "temperature": 0, "stream": stream}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for prompt, text in expected.texts.items():
            answer = client.completions.create(**greedy, prompt=prompt, max_tokens=MAX_TOKENS)
            parts = answer if stream else [answer]
            assert "".join(part.choices[0].text for part in parts) == text
        for question, text in expected.answers.items():
            messages: Any = [{"role": "user", "content": question}]
            chat = client.chat.completions.create(**greedy, messages=messages, max_completion_tokens=MAX_TOKENS)
            if stream:
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == text
            else:
                assert chat.choices[0].message.content == text
                assert chat.usage.prompt_tokens == expected.num_tokens[question]
            response = client.responses.create(**greedy, input=question, max_output_tokens=MAX_TOKENS)
            if stream:
                told = [event.delta for event in response if event.type == "response.output_text.delta"]
                assert "".join(told) == text
            else:
                assert response.output_text == text


def test_over_anthropic_s_route(url: str, expected: Expected) -> None:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        for question, text in expected.answers.items():
            fields: dict[str, Any] = {
                "model": "smollm2",
                "max_tokens": MAX_TOKENS,
                "messages": [{"role": "user", "content": question}],
                "extra_body": {"temperature": 0},
            }
            message = client.messages.create(**fields)
            assert message.content[0].text == text
            with client.messages.stream(**fields) as stream:
                assert "".join(stream.text_stream) == text
            counted = client.messages.count_tokens(model="smollm2", messages=fields["messages"])
            assert counted.input_tokens == expected.num_tokens[question]
