"""POST /tokenize and /detokenize, with vLLM's fields."""

from typing import Any

import orjson
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.chat import NAMES, TEMPLATE_FIELDS, check_tool, fill_template_fields, template_kwargs
from pagewire_router.http_front.errors import HttpError, wrong
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.fields import BOOLEAN, OBJECTS, STRING, TOKEN_IDS, Field, FieldTable
from pagewire_router.http_front.names import renaming
from pagewire_router.http_front.sampling_fields import MODEL
from pagewire_router.http_front.turns import Turn, check_num_parts
from pagewire_router.inference import Inference
from pagewire_router.text.tokenizer import Tokenizer

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
TOKENIZE_FIELDS = FieldTable(
    MODEL,
    Field("prompt", STRING, "Text; excludes messages."),
    Field("messages", OBJECTS, "A conversation; excludes prompt."),
    Field("add_special_tokens", BOOLEAN, "Adds the tokenizer's special tokens to text."),
    Field("return_token_strs", BOOLEAN, "Returns the tokens as the vocabulary writes them, too."),
    Field("tools", OBJECTS, "Functions that the model may call, for the template."),
    *(field for field in TEMPLATE_FIELDS if field.name != "add_special_tokens"),
)
DETOKENIZE_FIELDS = FieldTable(MODEL, Field("tokens", TOKEN_IDS, "Token ids.", is_required=True))
_DETOKENIZE_NAMES = renaming(DETOKENIZE_FIELDS, "tokens")


class Tokenizing:
    """Answers the requests of both routes."""

    def __init__(self, inference: Inference, tokenizer: Tokenizer | None) -> None:
        """tokenizer: None if the model came without one."""
        self._inference = inference
        self._tokenizer = tokenizer

    async def tokenize(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError, RouterError."""
        values = exchange.read_fields(TOKENIZE_FIELDS, body)
        self._inference.check_model(values.get("model"))
        check_num_parts(values, self._inference.limits.max_model_len)
        exchange.rename = NAMES if "messages" in values else renaming(TOKENIZE_FIELDS, "prompt")
        answer = await self._inference.tokenize(_tokenize_request(values), exchange.call)
        token_ids = list(answer.token_ids)
        token_strs = None
        if values.get("return_token_strs") and self._tokenizer is not None:
            token_strs = [self._tokenizer.token_text(token_id) for token_id in token_ids]
        told = {
            "count": len(token_ids),
            "max_model_len": self._inference.limits.max_model_len,
            "tokens": token_ids,
            "token_strs": token_strs,
        }
        await exchange.answer(200, orjson.dumps(told))

    async def detokenize(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError, RouterError."""
        values = exchange.read_fields(DETOKENIZE_FIELDS, body)
        self._inference.check_model(values.get("model"))
        exchange.rename = _DETOKENIZE_NAMES
        try:
            request = inference_pb2.DetokenizeRequest(token_ids=values["tokens"], skip_special_tokens=False)
        except ValueError:
            raise wrong("tokens", "holds a number that is no token id") from None
        answer = await self._inference.detokenize(request, exchange.call)
        await exchange.answer(200, orjson.dumps({"prompt": answer.text}))


def _tokenize_request(values: dict[str, Any]) -> inference_pb2.TokenizeRequest:
    if ("prompt" in values) == ("messages" in values):
        raise HttpError(400, "prompt: give either prompt or messages", param="prompt", code="invalid_value")
    request = inference_pb2.TokenizeRequest()
    if "messages" in values:
        tools = values.get("tools", [])
        for index, tool in enumerate(tools):
            check_tool(tool, f"tools[{index}]")
        fill_template_fields(values, request.chat)
        Turn(values["messages"], tools, template_kwargs=template_kwargs(values)).fill_chat(request.chat)
    else:
        request.text = values["prompt"]
        request.add_special_tokens = values.get("add_special_tokens", True)
    return request
