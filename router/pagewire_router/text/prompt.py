"""From what a client sent to the token ids of its prompt."""

from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2
from pagewire.v1 import inference_pb2

from pagewire_router.errors import FieldViolation, InvalidRequest, RequestTooLong
from pagewire_router.service.validation import Limits, Violations, check_prompt_length, check_token_ids
from pagewire_router.text.chat_template import ChatTemplateError, ChatTemplates
from pagewire_router.text.tokenizer import MAX_INLINE_CHARS, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model."""

    token_ids: list[int]
    """[num_tokens]"""
    text: str
    """What was tokenized; empty if token ids were given."""


class PromptEncoder:
    """Turns prompts into token ids and refuses those that do not fit the context."""

    def __init__(self, tokenizer: Tokenizer | None, limits: Limits) -> None:
        """tokenizer: None if the model came without one; then prompts are token ids."""
        self._tokenizer = tokenizer
        self._limits = limits

    async def encode(self, request: inference_pb2.GenerateRequest) -> Prompt:
        """The prompt of a request. Raises InvalidRequest, RequestTooLong."""
        field = request.WhichOneof("prompt") or "prompt"
        if field == "text":
            add_special_tokens = not request.HasField("add_special_tokens") or request.add_special_tokens
            prompt = await self.encode_text(request.text, add_special_tokens=add_special_tokens)
        elif field == "chat":
            prompt = await self.encode_chat(request.chat)
        elif field == "token_ids":
            check_prompt_length(len(request.token_ids.ids), field, self._limits)
            prompt = Prompt(list(request.token_ids.ids), "")
        else:
            raise InvalidRequest([FieldViolation(field, "is missing; set text, token_ids or chat")])
        check_prompt_length(len(prompt.token_ids), field, self._limits)
        self._check_vocabulary(prompt, field)
        return prompt

    def _check_vocabulary(self, prompt: Prompt, field: str) -> None:
        """A tokenizer may know tokens that the model has no embedding for. Raises InvalidRequest."""
        violations = Violations()
        if field == "token_ids":
            check_token_ids(prompt.token_ids, "token_ids.ids", self._limits, violations)
        elif max(prompt.token_ids) >= self._limits.vocab_size:
            token_id = next(t for t in prompt.token_ids if t >= self._limits.vocab_size)
            token = self.tokenizer_for(field).token_text(token_id)
            violations.add(
                field,
                f"holds token {token!r}, which the tokenizer numbers {token_id}; the model knows token ids below its "
                f"vocabulary size, {self._limits.vocab_size}",
            )
        violations.raise_if_any()

    async def encode_text(self, text: str, *, add_special_tokens: bool, field: str = "text") -> Prompt:
        """Token ids of a text. Raises RequestTooLong without encoding a text that cannot fit."""
        tokenizer = self.tokenizer_for(field)
        max_chars = tokenizer.max_chars_per_token * self._limits.max_model_len
        if len(text) > max_chars:
            raise RequestTooLong(
                [
                    FieldViolation(
                        field,
                        f"has {len(text)} characters; no text above {max_chars} fits the context of "
                        f"{self._limits.max_model_len} tokens",
                    )
                ]
            )
        return Prompt(await tokenizer.encode(text, add_special_tokens=add_special_tokens), text)

    async def encode_chat(self, chat: inference_pb2.ChatPrompt) -> Prompt:
        """Renders the chat template; what it writes holds the special tokens already. Raises InvalidRequest."""
        tokenizer = self.tokenizer_for("chat")
        _check_chat(chat)
        num_chars = sum(len(message.content) for message in chat.messages)
        try:
            if num_chars <= MAX_INLINE_CHARS and not chat.HasField("chat_template"):
                text = _render(tokenizer.chat_templates, chat)
            else:
                text = await tokenizer.run_on_thread(lambda whole: _render(tokenizer.chat_templates, whole), chat)
        except ChatTemplateError as error:
            raise InvalidRequest([FieldViolation("chat", str(error))]) from None
        return await self.encode_text(text, add_special_tokens=False, field="chat")

    def tokenizer_for(self, field: str) -> Tokenizer:
        """The tokenizer. Raises InvalidRequest that names the field which needs one, if there is none."""
        if self._tokenizer is None:
            raise InvalidRequest([FieldViolation(field, "needs a tokenizer, which the model lacks; use token ids")])
        return self._tokenizer


def _render(templates: ChatTemplates, chat: inference_pb2.ChatPrompt) -> str:
    continue_final_message = chat.continue_final_message
    return templates.render(
        [_message(message) for message in chat.messages],
        chat_template=chat.chat_template if chat.HasField("chat_template") else None,
        tools=[_plain(tool) for tool in chat.tools],
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continue_final_message
        ),
        continue_final_message=continue_final_message,
        template_kwargs=_plain(chat.template_kwargs),
    )


def _check_chat(chat: inference_pb2.ChatPrompt) -> None:
    violations = Violations()
    if not chat.messages:
        violations.add("chat.messages", "is empty; a conversation has at least one message")
    for index, message in enumerate(chat.messages):
        if not message.role:
            violations.add(f"chat.messages[{index}].role", 'is empty; such as "user", "assistant" or "system"')
    if chat.continue_final_message and chat.add_generation_prompt:
        violations.add("chat.continue_final_message", "is set together with add_generation_prompt; choose one")
    violations.raise_if_any()


def _message(message: inference_pb2.ChatMessage) -> dict[str, Any]:
    fields = {"role": message.role, "content": message.content}
    return {**fields, "name": message.name} if message.HasField("name") else fields


def _plain(value: Any) -> Any:
    """A Struct as Python values. Its numbers are all doubles: whole ones become integers, as they were in JSON."""
    if isinstance(value, struct_pb2.Struct):
        return {key: _plain(entry) for key, entry in value.fields.items()}
    if isinstance(value, struct_pb2.ListValue):
        return [_plain(entry) for entry in value.values]
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    content = getattr(value, kind)
    if kind == "number_value":
        return int(content) if content.is_integer() else content
    return _plain(content) if kind in ("struct_value", "list_value") else content
