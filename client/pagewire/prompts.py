"""What can be asked: the kinds of prompts, and how they go into a request."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, final

from pagewire.errors import InvalidRequest

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2


@final
class TextPrompt(TypedDict):
    """Text, tokenized by the server."""

    prompt: str


@final
class TokensPrompt(TypedDict):
    """Token ids, used as they are."""

    prompt_token_ids: Sequence[int]


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    role: str
    """"system", "user", "assistant" or "tool"."""
    content: str
    name: NotRequired[str]
    """The speaker's name, for templates that use it."""


@final
class ChatPrompt(TypedDict):
    """A conversation to continue, rendered by the server with the model's chat template."""

    messages: Sequence[ChatMessage]
    chat_template: NotRequired[str | None]
    """A Jinja template used in place of the model's own."""
    add_generation_prompt: NotRequired[bool]
    """Ends the prompt with the tokens that open the assistant's turn. Default: unless the final message continues."""
    continue_final_message: NotRequired[bool]
    """Leaves the last message open, so that the model continues it."""
    template_kwargs: NotRequired[Mapping[str, Any]]
    """Further variables for the template."""
    tools: NotRequired[Sequence[Mapping[str, Any]]]
    """JSON schema objects of the tools offered to the model."""


Prompt = str | TextPrompt | TokensPrompt | ChatPrompt
ACCEPTED_PROMPTS = (
    'text, {"prompt": text}, {"prompt_token_ids": [...]} or {"messages": [{"role": ..., "content": ...}]}'
)


def as_prompts(prompts: "Prompt | Sequence[Prompt]") -> list[Prompt]:
    """One prompt or several, as a list."""
    return [prompts] if isinstance(prompts, str | Mapping) else list(prompts)


def prompt_text(prompt: Prompt) -> str | None:
    """The text of a prompt that is text."""
    if isinstance(prompt, str):
        return prompt
    if "prompt" in prompt:
        return prompt["prompt"]
    return None


def fill_prompt(request: "inference_pb2.GenerateRequest", prompt: Prompt) -> None:
    """Writes the prompt into a request.

    Raises:
        InvalidRequest: it is none of the accepted kinds.
    """
    with _naming_the_prompt():
        if isinstance(prompt, str):
            request.text = prompt
        elif "prompt" in prompt:
            request.text = prompt["prompt"]
        elif "prompt_token_ids" in prompt:
            request.token_ids.SetInParent()  # an empty list is a prompt of no tokens, which the server refuses by name
            request.token_ids.ids.extend(prompt["prompt_token_ids"])
        elif "messages" in prompt:
            fill_chat(request.chat, prompt)
        else:
            raise ValueError(f"keys {sorted(prompt)} given")


def fill_tokenize(request: "inference_pb2.TokenizeRequest", prompt: str | TextPrompt | ChatPrompt) -> None:
    """Writes what to tokenize into a request.

    Raises:
        InvalidRequest: it is none of the accepted kinds.
    """
    with _naming_the_prompt():
        if not isinstance(prompt, str) and "messages" in prompt:
            fill_chat(request.chat, prompt)
        else:
            request.text = prompt if isinstance(prompt, str) else prompt["prompt"]


@contextmanager
def _naming_the_prompt() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise InvalidRequest.of_field("prompt", f"{exc}; accepted: {ACCEPTED_PROMPTS}") from exc


def fill_chat(chat: "inference_pb2.ChatPrompt", prompt: ChatPrompt) -> None:
    """Writes a conversation into its message."""
    for message in prompt["messages"]:
        chat.messages.add(role=message["role"], content=message["content"], name=message.get("name"))
    chat.SetInParent()
    template = prompt.get("chat_template")
    if template is not None:
        chat.chat_template = template
    continues = prompt.get("continue_final_message", False)
    if continues:
        chat.continue_final_message = True
    if "add_generation_prompt" in prompt:
        chat.add_generation_prompt = prompt["add_generation_prompt"]
    elif continues:
        chat.add_generation_prompt = False
    if "template_kwargs" in prompt:
        chat.template_kwargs.update(prompt["template_kwargs"])
    for tool in prompt.get("tools", ()):
        chat.tools.add().update(tool)
