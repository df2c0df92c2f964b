"""Encodes prompts: text, chat messages or token ids become token ids that fit the context."""

from dataclasses import dataclass, replace

from pagewire.v1 import inference_pb2

from pagewire_router.admission.conversation import check_num_messages, read_conversation
from pagewire_router.admission.validation import Limits, Violations, check_prompt_length, check_token_ids
from pagewire_router.caller import Caller
from pagewire_router.config import MAX_MESSAGE_BYTES
from pagewire_router.errors import FieldViolation, InvalidRequest, RequestTooLong
from pagewire_router.text.chat_template import ChatTemplateError, RenderedTooLong
from pagewire_router.text.template_process import MAX_TEMPLATE_BYTES, TemplateProcess, encode_request
from pagewire_router.text.tokenizer import Tokenizer

MAX_INLINE_CHAT_BYTES = 4096
"""Conversations up to this size are rendered on the event loop, which takes under 1 ms."""

_NUM_END_TOKENS = 32
"""Tokens that are decoded to see what a prompt of token ids ends with."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model."""

    token_ids: list[int]
    """[num_tokens]"""
    text: str
    """Text that was tokenized; empty if token ids were given."""


class PromptEncoder:
    """Turns prompts into token ids and refuses those that do not fit the context."""

    def __init__(
        self, tokenizer: Tokenizer | None, limits: Limits, template_process: TemplateProcess | None = None
    ) -> None:
        """
        Args:
            tokenizer: None if the model came without one; then prompts are token ids.
            template_process: renders chat templates that clients send; None: such templates are refused.
        """
        self._tokenizer = tokenizer
        self._limits = limits
        self._template_process = template_process

    async def encode(
        self, request: inference_pb2.GenerateRequest, caller: Caller, num_kept_tokens: int | None = None
    ) -> Prompt:
        """The prompt of a request. Raises InvalidRequest, RequestTooLong, QueueFull, Unavailable.

        Args:
            num_kept_tokens: only the last of the prompt's tokens are used, so many at most; None: all.
        """
        field = request.WhichOneof("prompt") or "prompt"
        if field == "text":
            add_special_tokens = not request.HasField("add_special_tokens") or request.add_special_tokens
            prompt = await self.encode_text(
                request.text, caller, add_special_tokens=add_special_tokens, is_truncated=num_kept_tokens is not None
            )
        elif field == "chat":
            prompt = await self.encode_chat(request.chat, caller, is_truncated=num_kept_tokens is not None)
        elif field == "token_ids":
            if num_kept_tokens is None:
                check_prompt_length(len(request.token_ids.ids), field, self._limits)
            prompt = Prompt(request.token_ids.ids[:], "")
        else:
            raise InvalidRequest([FieldViolation(field, "is missing; set text, token_ids or chat")])
        if num_kept_tokens is not None:
            prompt = replace(prompt, token_ids=prompt.token_ids[-num_kept_tokens:])
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

    async def encode_text(
        self,
        text: str,
        caller: Caller,
        *,
        add_special_tokens: bool,
        field: str = "text",
        is_truncated: bool = False,
    ) -> Prompt:
        """Token ids of a text. Raises RequestTooLong without encoding a text that cannot fit.

        Args:
            is_truncated: only some of the tokens are used, so that any text that comes in a message can fit.
        """
        tokenizer = self.tokenizer_for(field)
        max_chars = self._max_chars(tokenizer, is_truncated=is_truncated)
        if len(text) > max_chars:
            raise RequestTooLong(
                [
                    FieldViolation(
                        field,
                        f"has {len(text)} characters; accepted: up to {max_chars}, since {self._limits.context}",
                    )
                ]
            )
        return Prompt(await tokenizer.encode(text, add_special_tokens=add_special_tokens, caller=caller), text)

    async def encode_chat(
        self, chat: inference_pb2.ChatPrompt, caller: Caller, *, is_truncated: bool = False
    ) -> Prompt:
        """Token ids of a conversation. The text that the chat template writes holds the special tokens already.

        Raises InvalidRequest, RequestTooLong, QueueFull.
        """
        tokenizer = self.tokenizer_for("chat")
        check_num_messages(chat, self._limits.max_model_len)
        templates = tokenizer.chat_templates
        is_sent = chat.HasField("chat_template") and chat.chat_template not in templates
        field = "chat.chat_template" if is_sent else "chat"
        try:
            render = self._render_sent if is_sent else self._render
            text = await render(chat, tokenizer, caller, self._max_chars(tokenizer, is_truncated=is_truncated))
        except RenderedTooLong as error:
            raise RequestTooLong([FieldViolation(field, f"{error}: {self._limits.context}")]) from None
        except ChatTemplateError as error:
            raise InvalidRequest([FieldViolation(field, str(error))]) from None
        return await self.encode_text(text, caller, add_special_tokens=False, field="chat", is_truncated=is_truncated)

    async def _render(
        self, chat: inference_pb2.ChatPrompt, tokenizer: Tokenizer, caller: Caller, max_chars: int
    ) -> str:
        """Renders the conversation with one of the model's own templates."""
        name = chat.chat_template if chat.HasField("chat_template") else None

        def render(chat: inference_pb2.ChatPrompt) -> str:
            return tokenizer.chat_templates.render(read_conversation(chat), name=name, max_chars=max_chars)

        num_bytes = chat.ByteSize()
        if num_bytes <= MAX_INLINE_CHAT_BYTES:
            return render(chat)
        return await tokenizer.run_on_thread(render, chat, num_chars=num_bytes, caller=caller)

    async def _render_sent(
        self, chat: inference_pb2.ChatPrompt, tokenizer: Tokenizer, caller: Caller, max_chars: int
    ) -> str:
        """Renders the conversation with a template that the client has sent."""
        if self._template_process is None:
            raise ChatTemplateError(
                "is not one of the model's templates, and others are taken only with --trust-request-chat-template"
            )
        num_bytes = len(chat.chat_template.encode())
        if num_bytes > MAX_TEMPLATE_BYTES:
            raise ChatTemplateError(f"has {num_bytes} bytes; accepted: up to {MAX_TEMPLATE_BYTES}")
        special_tokens = tokenizer.chat_templates.special_tokens

        def encode(chat: inference_pb2.ChatPrompt) -> bytes:
            return encode_request(chat.chat_template, read_conversation(chat), special_tokens, max_chars)

        num_bytes = chat.ByteSize()
        if num_bytes <= MAX_INLINE_CHAT_BYTES:
            request = encode(chat)
        else:
            request = await tokenizer.run_on_thread(encode, chat, num_chars=num_bytes, caller=caller)
        return await self._template_process.render(request, caller)

    def end_of(self, prompt: Prompt) -> str:
        """The text that a prompt ends with, special tokens included; empty if the model has no tokenizer."""
        if prompt.text or self._tokenizer is None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids[-_NUM_END_TOKENS:], skip_special_tokens=False)

    def _max_chars(self, tokenizer: Tokenizer, *, is_truncated: bool) -> int:
        """Length of the longest text that can fit the context; that of the largest message if there is no bound."""
        if is_truncated or tokenizer.max_chars_per_token is None:
            return MAX_MESSAGE_BYTES
        return tokenizer.max_chars_per_token * self._limits.max_model_len

    def tokenizer_for(self, field: str) -> Tokenizer:
        """The tokenizer. Raises InvalidRequest that names the field which needs one, if there is none."""
        if self._tokenizer is None:
            raise InvalidRequest([FieldViolation(field, "needs a tokenizer, which the model lacks; use token ids")])
        return self._tokenizer
