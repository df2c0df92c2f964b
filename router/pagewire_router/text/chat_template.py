"""Renders conversations with a Jinja template, in a sandbox, as transformers' apply_chat_template does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagewire_router.text.content_format import ContentUse, content_use, in_format
from pagewire_router.text.template_environment import template_environment

if TYPE_CHECKING:
    import jinja2

MAX_REASON_CHARS = 1000
"""Longest text of an error that a template causes or raises."""
_OPEN_END = "\ue000\ue001"
"""Marks the end of the last message while it is rendered; private-use characters, which no message needs."""
_MARK = _OPEN_END + " "
"""The mark with a space, which is missing in the rendered text if the template trims messages."""
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of the field with a message's reasoning in templates and clients; the first is the usual one."""


class ChatTemplateError(Exception):
    """The template has refused the messages, or is malformed. The message says why."""

    def __init__(self, reason: str) -> None:
        reason = reason.encode("utf-8", "backslashreplace").decode()
        super().__init__(reason if len(reason) <= MAX_REASON_CHARS else reason[:MAX_REASON_CHARS] + "...")


class RenderedTooLong(ChatTemplateError):
    """The template writes more text than any prompt may have."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The input of a template. All values are JSON values: str, int, float, bool, None, list and dict."""

    messages: list[dict[str, Any]]
    """At least one, each with a role."""
    tools: list[dict[str, Any]] | None = None
    """JSON schema objects of the tools offered to the model."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables for the template."""
    add_generation_prompt: bool = True
    """Ends the text with what opens the assistant's turn."""
    continue_final_message: bool = False
    """Ends the text where the last message's content ends."""
    content_format: str = "auto"
    """One of content_format.FORMATS."""


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError if the template is malformed."""
        try:
            environment = template_environment()
            self._template: jinja2.Template = environment.from_string(source)
            self._use: ContentUse = content_use(environment.parse(source))
        except Exception as error:
            raise _of_template(error) from None

    def render(self, conversation: Conversation, special_tokens: Mapping[str, str], max_chars: int) -> str:
        """The prompt as text, special tokens written out. Raises ChatTemplateError, RenderedTooLong.

        max_chars: the longest text to write.
        """
        messages = [_with_reasoning(message) for message in conversation.messages]
        messages = in_format(messages, conversation.content_format, self._use)
        final = None
        if conversation.continue_final_message:
            final = _final_text(messages[-1])
            messages = [*messages[:-1], _with_mark(messages[-1])]
        kwargs = conversation.template_kwargs
        variables = {
            **special_tokens,
            **kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "documents": kwargs.get("documents"),
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        text = self._write(variables, max_chars)
        return text if final is None else _cut_at_open_end(text, final)

    def _write(self, variables: dict[str, Any], max_chars: int) -> str:
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                num_chars += len(part)
                if num_chars > max_chars:
                    raise RenderedTooLong(
                        f"the chat template writes more than {max_chars} characters, which fit no context"
                    )
            text = "".join(parts)
            if not text.isascii():
                text.encode()  # A lone surrogate cannot be encoded, and is in no prompt.
        except ChatTemplateError:
            raise
        # A template is a program: whatever it does wrong with these messages is the request's error, not ours.
        except Exception as error:
            raise _of_template(error) from None
        return text


class ChatTemplates:
    """The templates of one model and the special tokens they may name."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = templates
        self._compiled: dict[str, ChatTemplate] = {}
        self.special_tokens = special_tokens
        """Texts of the special tokens by name, such as bos_token."""

    def __bool__(self) -> bool:
        return bool(self._sources)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    @property
    def sources(self) -> Mapping[str, str]:
        """The templates as written, by name."""
        return self._sources

    def compile(self) -> None:
        """Compiles all templates, so that the first conversation need not wait for it. Raises ChatTemplateError."""
        for name in self._sources:
            self._get(name)

    def choose(self, name: str | None, *, has_tools: bool) -> str:
        """The name of the template to use, as transformers chooses it: the named one, or the one for tools where there
        are tools and such a template, or the default one. Raises ChatTemplateError.
        """
        if name is not None:
            return name
        if has_tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" in self._sources:
            return "default"
        if self._sources:
            raise ChatTemplateError(
                "the model has several chat templates and no default; name one in chat.chat_template: "
                + ", ".join(sorted(self._sources))
            )
        raise ChatTemplateError("the model has no chat template; send text or token ids")

    def render(self, conversation: Conversation, *, name: str | None = None, max_chars: int) -> str:
        """The prompt as text. Raises ChatTemplateError, RenderedTooLong.

        name: name of one of the model's templates; None: see choose().
        """
        name = self.choose(name, has_tools=conversation.tools is not None)
        return self._get(name).render(conversation, self.special_tokens, max_chars)

    def _get(self, name: str) -> ChatTemplate:
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._sources[name])
        return self._compiled[name]


def _of_template(error: Exception) -> ChatTemplateError:
    import jinja2

    try:
        reason = str(error)
    except Exception:  # What a template raises may hold objects whose text cannot be made.
        reason = ""
    if isinstance(error, UnicodeEncodeError):
        return ChatTemplateError("the chat template writes half of a surrogate pair, which is no character")
    if isinstance(error, jinja2.TemplateError):
        return ChatTemplateError(f"the chat template says: {reason}")
    return ChatTemplateError(f"the chat template fails: {type(error).__name__}: {reason}")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under every name that templates read, as in transformers."""
    for key in _REASONING_KEYS:
        if message.get(key) is not None:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


def _text_parts(content: Iterable[Any]) -> list[int]:
    return [index for index, part in enumerate(content) if isinstance(part, dict) and "text" in part]


def _final_text(message: dict[str, Any]) -> str:
    """The text that the model is to continue."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and (indices := _text_parts(content)):
        text: str = content[indices[-1]]["text"]
        return text
    raise ChatTemplateError("continue_final_message: the final message has no text to continue")


def _with_mark(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the mark at the end of its text, or of the last part that has text."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + _MARK}
    parts = list(content)
    index = _text_parts(parts)[-1]
    parts[index] = {**parts[index], "text": parts[index]["text"] + _MARK}
    return {**message, "content": parts}


def _cut_at_open_end(text: str, final: str) -> str:
    """Cuts the text at the end of the last message. If the template trims messages, the end is trimmed too."""
    end = text.rfind(_OPEN_END)
    if end < 0 or final.strip() not in text:
        raise ChatTemplateError("continue_final_message: the chat template leaves out the final message's content")
    text = text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()
    # A template may write the message more than once.
    return text.replace(_MARK, "").replace(_OPEN_END, "")
