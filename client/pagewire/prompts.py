"""The kinds of prompts, and how they are written into a request."""

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NotRequired, SupportsIndex, TypedDict, TypeGuard, final

from pagewire.errors import InvalidRequest

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2


@final
class TextPrompt(TypedDict):
    """Text, tokenized by the server."""

    prompt: str
    cache_salt: NotRequired[str | None]
    """Cached prefixes are shared only among requests of one salt."""


@final
class TokensPrompt(TypedDict):
    """Token ids, used as they are."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str | None]
    """Their text, which the answer repeats; only the ids are sent."""
    cache_salt: NotRequired[str | None]
    """Cached prefixes are shared only among requests of one salt."""


ContentFormat = Literal["auto", "string", "openai"]
"""Form of the content of messages: what the template expects, always text, or always a list of parts."""
_CONTENT_FORMATS: tuple[ContentFormat, ...] = ("auto", "string", "openai")
"""Formats in the order of their numbers on the wire."""
ChatMessage = Mapping[str, Any]
"""One turn of a conversation, in the form of OpenAI's API.

    role: "system", "user", "assistant" or "tool".
    content: text, or a list of {"type": "text", "text": ...}.
    tool_calls, tool_call_id, name, reasoning_content ...: whatever else the model's chat template reads.
"""


@final
class ChatPrompt(TypedDict):
    """A conversation to continue, rendered by the server with the model's chat template."""

    messages: Sequence[ChatMessage]
    chat_template: NotRequired[str | None]
    """The name of one of the model's templates, or a Jinja template in their place, if the server takes those."""
    chat_template_content_format: NotRequired[ContentFormat]
    """Form in which the template gets the content of messages. Default: "auto", what it expects."""
    add_generation_prompt: NotRequired[bool]
    """Ends the prompt with the tokens that open the assistant's turn. Default: not continue_final_message."""
    continue_final_message: NotRequired[bool]
    """Leaves the last message open, so that the model continues it."""
    template_kwargs: NotRequired[Mapping[str, Any] | None]
    """Further variables for the template."""
    chat_template_kwargs: NotRequired[Mapping[str, Any] | None]
    """vLLM's name of template_kwargs; only one of them may be given."""
    tools: NotRequired[Sequence[Mapping[str, Any]] | None]
    """JSON schema objects of the tools offered to the model."""
    cache_salt: NotRequired[str | None]
    """Cached prefixes are shared only among requests of one salt."""


Prompt = str | TextPrompt | TokensPrompt | ChatPrompt
PromptLike = Prompt | Sequence[int]
"""The prompts that callers may give: also a list of token ids, an array of numpy or a tensor of torch."""
ACCEPTED_PROMPTS = (
    'text, a list of token ids, {"prompt": text}, {"prompt_token_ids": [...]} or '
    '{"messages": [{"role": ..., "content": ...}]}'
)
_KINDS: dict[str, type] = {"messages": ChatPrompt, "prompt_token_ids": TokensPrompt, "prompt": TextPrompt}
"""Kind of prompt by the key that decides; the first key that is present counts."""


class CheckedPrompts(list[Prompt]):
    """What as_prompts returns, which need not be looked at again."""


def as_prompts(prompts: "PromptLike | Sequence[PromptLike]") -> CheckedPrompts:
    """Returns one prompt or several as a list.

    Raises:
        InvalidRequest: one is not of an accepted kind.
    """
    return prompts if isinstance(prompts, CheckedPrompts) else CheckedPrompts(_as_prompts(prompts))


def _as_prompts(prompts: "PromptLike | Sequence[PromptLike]") -> list[Prompt]:
    with _naming_the_prompt():
        if isinstance(prompts, str | Mapping):
            return [as_prompt(prompts)]
        listed = _listed(prompts)
        is_one = bool(listed) and all(_is_number(item) for item in listed)
        return [as_prompt(listed)] if is_one else [as_prompt(item) for item in listed]


def with_salt(prompt: Prompt, cache_salt: str) -> Prompt:
    """Returns the prompt with a salt, which is joined with its own if it has one."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "cache_salt": cache_salt}
    own = prompt.get("cache_salt")
    salt = cache_salt if own is None else sha256(f"{cache_salt}:{own}".encode()).hexdigest()
    # mypy does not tell the kinds apart.
    return {**prompt, "cache_salt": salt}  # type: ignore


def as_prompt(prompt: PromptLike) -> Prompt:
    """Returns a prompt in one of the forms that are sent; keys that are None are left out.

    Raises:
        InvalidRequest: it is not of an accepted kind, or has keys that are not served.
    """
    with _naming_the_prompt():
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, Mapping):
            return {"prompt_token_ids": _token_ids(prompt)}
        given = {key: value for key, value in prompt.items() if value is not None}
        kind = next((kind for key, kind in _KINDS.items() if key in given), None)
        if kind is None:
            raise ValueError(f"keys {sorted(map(str, prompt))} given")
        unknown = sorted(set(given) - set(kind.__annotations__))
        if unknown:
            raise ValueError(f"keys {unknown} are not served beside {', '.join(kind.__annotations__)}")
        if kind is TokensPrompt:
            given["prompt_token_ids"] = _token_ids(given["prompt_token_ids"])
        elif kind is TextPrompt and not isinstance(given["prompt"], str):
            raise TypeError(f"a {type(given['prompt']).__name__} given as text")
        return given  # type: ignore[return-value]


def _token_ids(ids: Any) -> list[int]:
    """Returns a list of integers. Raises TypeError for anything else."""
    listed = _listed(ids)
    types = set(map(type, listed))
    if types <= {
        int
    }:  # nearly always; to look at each of half a million tokens in Python would take a tenth of a second
        return listed
    if bool in types:
        raise TypeError("truth values given as token ids")
    return [operator.index(token_id) for token_id in listed]


def _listed(values: Any) -> list[Any]:
    """Returns an ordered collection, an array of numpy or a tensor of torch as a list. Raises TypeError."""
    listed: Any = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, bytes | bytearray | Mapping | set | frozenset) or not isinstance(listed, Iterable):
        raise TypeError(f"a {type(values).__name__} given")
    return list(listed)


def _is_number(item: Any) -> bool:
    """Returns whether this is a token id. Arrays have __index__ too, but those with a dimension are prompts."""
    return type(item) is int or (isinstance(item, SupportsIndex) and not getattr(item, "ndim", 0))


def prompt_text(prompt: Prompt) -> str | None:
    """Returns the text of a prompt, if the caller gave it."""
    if isinstance(prompt, str):
        return prompt
    text: str | None = prompt.get("prompt")  # type: ignore[assignment]
    return text


def prompt_salt(prompt: Prompt) -> str | None:
    """Returns the cache salt that the prompt itself carries."""
    return None if isinstance(prompt, str) else prompt.get("cache_salt")


def has_token_ids(prompt: Prompt) -> TypeGuard[TokensPrompt]:
    """Whether a prompt, as as_prompt gives it, is token ids."""
    return not isinstance(prompt, str) and "prompt_token_ids" in prompt


def fill_prompt(request: "inference_pb2.GenerateRequest", prompt: Prompt) -> None:
    """Writes a prompt, as as_prompt gives it, into a request.

    Raises:
        InvalidRequest: it is malformed.
    """
    with _naming_the_prompt():
        if isinstance(prompt, str):
            request.text = prompt
        elif "messages" in prompt:
            fill_chat(request.chat, prompt)
        elif "prompt_token_ids" in prompt:
            request.token_ids.SetInParent()  # an empty list is a prompt of no tokens, which the server refuses by name
            request.token_ids.ids.extend(prompt["prompt_token_ids"])
        else:
            request.text = prompt["prompt"]


def fill_tokenize(request: "inference_pb2.TokenizeRequest", prompt: str | TextPrompt | ChatPrompt) -> None:
    """Writes the text or the conversation to tokenize into a request.

    Raises:
        InvalidRequest: it is not of an accepted kind.
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
    except InvalidRequest:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise InvalidRequest.of_field("prompt", f"{exc}; accepted: {ACCEPTED_PROMPTS}") from exc


def fill_chat(chat: "inference_pb2.ChatPrompt", prompt: ChatPrompt) -> None:
    """Writes a conversation into its message.

    Raises:
        TypeError, ValueError, KeyError: it is malformed.
    """
    unknown = set(prompt) - set(ChatPrompt.__annotations__)
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}; accepted: {', '.join(ChatPrompt.__annotations__)}")
    chat.SetInParent()
    for message in _listed(prompt["messages"]):
        _fill_message(chat.messages.add(), message)
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
    _fill_template_options(chat, prompt)


def _fill_template_options(chat: "inference_pb2.ChatPrompt", prompt: ChatPrompt) -> None:
    kwargs, other = prompt.get("template_kwargs"), prompt.get("chat_template_kwargs")
    if kwargs and other:
        raise ValueError("template_kwargs and chat_template_kwargs are the same; give one")
    kwargs = kwargs or other
    if kwargs:
        chat.template_kwargs_json = _to_json(dict(kwargs))
    tools = prompt.get("tools")
    if tools is not None:
        chat.tools_json = _to_json(list(tools))
    content_format = prompt.get("chat_template_content_format", "auto")
    if content_format not in _CONTENT_FORMATS:
        raise ValueError(f"chat_template_content_format is {content_format!r}; accepted: {', '.join(_CONTENT_FORMATS)}")
    if content_format != "auto":
        chat.content_format = _CONTENT_FORMATS.index(content_format)  # type: ignore[assignment]


def _fill_message(target: "inference_pb2.ChatMessage", message: ChatMessage) -> None:
    """Writes a message into its fields if they can hold all of it, else whole as JSON."""
    if list(message) in _PLAIN_KEYS and all(type(value) is str for value in message.values()):
        target.role, target.content = message["role"], message["content"]
        if "name" in message:
            target.name = message["name"]
    else:
        target.json = _to_json(message)


_PLAIN_KEYS = (["role", "content"], ["role", "content", "name"])


def _to_json(value: Any) -> str:
    """Returns JSON with keys in their order. Raises TypeError or ValueError for what JSON cannot express."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)


def _as_json(value: Any) -> Any:
    """Converts mappings other than dict, and the objects of the OpenAI client."""
    if isinstance(value, Mapping):
        return dict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump()
    raise TypeError(f"a {type(value).__name__} cannot be sent; accepted: what JSON can express")
