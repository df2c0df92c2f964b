"""Rendering chat messages with a model's Jinja template, in a sandbox, as Hugging Face's tokenizers do."""

import datetime
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 32 * 1024 * 1024
"""A template that writes more than this is at fault."""
_OPEN_END = "\ue000\ue001"
"""Marks the end of the last message while it is rendered: private-use characters that no message needs."""
_MARK = _OPEN_END + " "
"""The space is gone afterwards if the template trims messages."""


class ChatTemplateError(Exception):
    """The template refused the messages, or is malformed; the message says why."""


class ChatTemplates:
    """The templates of one model and the special tokens they may name."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._templates = templates
        self._special_tokens = special_tokens

    def __bool__(self) -> bool:
        return bool(self._templates)

    def compile(self) -> None:
        """Spares the first conversation the time this takes. Raises jinja2.TemplateError if a template is malformed."""
        for source in self._templates.values():
            _compile(source)

    def choose(self, *, has_tools: bool) -> str:
        """The model's template: the one for tools where there are tools and such a template."""
        names = ("tool_use", "default") if has_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            raise ChatTemplateError(
                f"the model has no default chat template, only {', '.join(sorted(self._templates))}"
            )
        raise ChatTemplateError("the model has no chat template; give one in chat.chat_template or send text")

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        chat_template: str | None,
        tools: list[dict[str, Any]],
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """The prompt as text, special tokens written out. Raises ChatTemplateError.

        chat_template: used in place of the model's own.
        continue_final_message: ends the text where the last message's content ends.
        """
        source = chat_template if chat_template is not None else self.choose(has_tools=bool(tools))
        if continue_final_message:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + _MARK}]
        variables = {
            **self._special_tokens,
            **template_kwargs,
            "messages": messages,
            "tools": tools or None,
            "documents": template_kwargs.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render(source, variables)
        return _cut_at_open_end(text) if continue_final_message else text


def _render(source: str, variables: dict[str, Any]) -> str:
    import jinja2

    parts: list[str] = []
    num_chars = 0
    try:
        for part in _compile(source).generate(variables):
            parts.append(part)
            num_chars += len(part)
            if num_chars > MAX_RENDERED_CHARS:
                raise ChatTemplateError(f"the chat template writes more than {MAX_RENDERED_CHARS} characters")
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template says: {error}") from None
    # A template is a program: whatever it does wrong with these messages is the request's error, not ours.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, MemoryError) as error:
        raise ChatTemplateError(f"the chat template fails: {type(error).__name__}: {error}") from None
    return "".join(parts)


def _cut_at_open_end(text: str) -> str:
    """Ends the text where the last message does. Where the template trims messages, the text is trimmed too."""
    end = text.rfind(_OPEN_END)
    if end < 0:
        raise ChatTemplateError("continue_final_message: the chat template leaves out the final message's content")
    text = text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()
    # A template may write the message more than once.
    return text.replace(_MARK, "").replace(_OPEN_END, "")


@lru_cache(maxsize=16)
def _compile(source: str) -> "jinja2.Template":
    return _environment().from_string(source)


@cache
def _environment() -> "ImmutableSandboxedEnvironment":
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks the assistant's words for training. Here it only renders its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: "jinja2.parser.Parser") -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which is not wanted in a prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
