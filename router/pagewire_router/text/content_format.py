"""Gives the content of messages to a chat template in the form it expects: text, or a list of parts.

OpenAI's API allows both in a request, while most templates expect one of them. As in vLLM, the form is read from the
template: one that loops over a message's content expects parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import nodes

FORMATS = ("auto", "string", "openai")
"""vLLM's names: as the template expects, always text, always a list of parts."""


@dataclass(frozen=True, slots=True)
class ContentUse:
    """The forms of content that a template expects."""

    takes_parts: bool
    """The template loops over the content."""
    takes_text: bool
    """The template prints the content, or checks whether it is text before it loops."""


def content_use(tree: "nodes.Template") -> ContentUse:
    """The use that a parsed template makes of the content of messages."""
    from jinja2 import nodes

    names = _content_names(tree)
    takes_parts = any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))
    asks = any(test.name == "string" and _is_content(test.node, names) for test in tree.find_all(nodes.Test))
    return ContentUse(takes_parts, asks or not takes_parts)


def in_format(messages: list[dict[str, Any]], content_format: str, use: ContentUse) -> list[dict[str, Any]]:
    """The messages with their content in a format of FORMATS. Content that is in the format already is left alone."""
    as_parts = content_format == "openai" or (content_format == "auto" and not use.takes_text)
    as_text = content_format == "string" or (content_format == "auto" and not use.takes_parts)
    changed = []
    for message in messages:
        content = message.get("content")
        if as_parts and isinstance(content, str):
            message = {**message, "content": [{"type": "text", "text": content}]}
        elif as_text and isinstance(content, list):
            message = {**message, "content": "\n".join(map(_text_of, content))}
        changed.append(message)
    return changed


def _text_of(part: dict[str, Any]) -> str:
    text: str | list[dict[str, str]] = part["thinking"] if part.get("type") == "thinking" else part["text"]
    return text if isinstance(text, str) else "".join(thought["text"] for thought in text)


def _content_names(tree: "nodes.Template") -> set[str]:
    """The variables that hold a message's content: those set to it, and arguments of macros called "content"."""
    from jinja2 import nodes

    names = {"content" for macro in tree.find_all(nodes.Macro) if "content" in [arg.name for arg in macro.args]}
    num_names = -1
    while num_names < len(names):
        num_names = len(names)
        names |= {name for name, value in _assignments(tree) if _is_content(value, names)}
    return names


def _assignments(tree: "nodes.Template") -> Iterator[tuple[str, "nodes.Node"]]:
    from jinja2 import nodes

    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            yield assign.target.name, assign.node


def _is_content(node: "nodes.Node | None", names: set[str]) -> bool:
    """Whether an expression is a message's content, or a part or a filtered form of it."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node, names)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, names) or _is_content(node.expr2, names)
    return isinstance(node, nodes.Filter) and _is_content(node.node, names)
