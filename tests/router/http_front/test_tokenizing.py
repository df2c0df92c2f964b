"""/tokenize and /detokenize."""

import httpx2
import pytest
from pagewire_router.text.tokenizer import Tokenizer


@pytest.fixture
async def post(serve_http):
    async with serve_http() as front, httpx2.AsyncClient(base_url=front.base_url) as client:

        async def send(path, **fields):
            answer = await client.post(path, json=fields)
            return answer.status_code, answer.json()

        yield send


async def test_texts_and_conversations_are_tokenized_as_prompts_are(post, byte_level_files):
    tokenizer = Tokenizer(byte_level_files, 500)
    _, text = await post("/tokenize", model="tiny", prompt="Hello, engines", return_token_strs=True)
    assert text["tokens"] == tokenizer.encode_now("Hello, engines", add_special_tokens=True)
    assert text["count"] == len(text["tokens"])
    assert text["max_model_len"] == 256
    assert text["token_strs"][0] == "<s>"
    assert len(text["token_strs"]) == text["count"]
    _, bare = await post("/tokenize", prompt="Hello, engines", add_special_tokens=False)
    assert bare["tokens"] == text["tokens"][1:]
    assert bare["token_strs"] is None
    hello = [{"role": "user", "content": "Hello"}]
    _, chat = await post("/tokenize", messages=hello, add_generation_prompt=False)
    assert chat["tokens"] == tokenizer.encode_now("<s><|user|>Hello</s>", add_special_tokens=False)
    _, back = await post("/detokenize", tokens=chat["tokens"])
    assert back == {"prompt": "<s><|user|>Hello</s>"}


async def test_what_is_wrong_is_refused_by_name(post):
    for path, fields, param, status in (
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt", 400),
        ("/tokenize", {"messages": []}, "messages", 400),
        ("/tokenize", {"model": "huge", "prompt": "a"}, "model", 404),
        ("/detokenize", {"tokens": [-1]}, "tokens", 400),
        ("/detokenize", {"tokens": [500]}, "tokens[0]", 400),
        ("/detokenize", {"tokens": "a"}, "tokens", 400),
        ("/detokenize", {}, "tokens", 400),
    ):
        answer = await post(path, **fields)
        assert (answer[0], answer[1]["error"]["param"]) == (status, param), (path, fields)
