"""Structural tags: free text in which certain texts or tokens begin a constrained part, as tool calls need it.

Two forms are read, both as vLLM takes them: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, and
{"type": "structural_tag", "format": {...}} with a tree of formats. A format becomes a rule part in Lark's notation.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pagewire_shard.grammar.errors import SourceRefused
from pagewire_shard.grammar.json_schema import JsonOptions, guided_schema, schema_of
from pagewire_shard.grammar.lark import any_token_but, literal, one_token, pieces, regex, to_lark
from pagewire_shard.grammar.source_options import Part, SourceOptions

Format = dict[str, Any]
ENDLESS = frozenset({"any_text", "any_tokens", "triggered_tags", "token_triggered_tags"})
"""Formats that go on until something else begins: what ends them must be known."""


def structural_tag_parts(text: str, options: SourceOptions, json_options: JsonOptions) -> list[Part]:
    """The grammars of a structural tag, the start first. Raises SourceRefused."""
    try:
        tag = json.loads(text)
    except ValueError as error:
        raise SourceRefused(f"structural_tag is not valid JSON: {error}") from error
    if not isinstance(tag, dict):
        raise SourceRefused("structural_tag is no object")
    if "structures" in tag:
        chosen = _from_structures(tag)
    elif tag.get("type") == "structural_tag" and isinstance(tag.get("format"), dict):
        chosen = tag["format"]
    else:
        raise SourceRefused('structural_tag has neither "structures" nor, with "type": "structural_tag", a "format"')
    return StructuralTag(options, json_options).parts(chosen)


class StructuralTag:
    """Writes the rules of one structural tag."""

    def __init__(self, options: SourceOptions, json_options: JsonOptions) -> None:
        self._options = options
        self._json_options = json_options
        self._rules: list[str] = []
        self._side_parts: list[Part] = []
        self._formats: dict[str, Callable[[Format], str]] = {
            "const_string": lambda f: self._literal(_text(f, "value")),
            "json_schema": self._json_schema,
            "grammar": lambda f: self._side({"lark_grammar": to_lark(_text(f, "grammar"))}),
            "regex": lambda f: regex(_text(f, "pattern")),
            "any_text": self._any_text,
            "any_tokens": lambda f: f"{self._tokens_but(f, 'exclude_tokens')}*",
            "exclude_token": lambda f: self._tokens_but(f, "exclude_tokens"),
            "token": lambda f: one_token(self._token_id(f.get("token"))),
            "sequence": self._sequence,
            "or": lambda f: self._either([self.expression(element) for element in _formats(f, "elements")]),
            "optional": lambda f: f"{self._bounded(f)}?",
            "plus": lambda f: f"{self._bounded(f)}+",
            "star": lambda f: f"{self._bounded(f)}*",
            "repeat": self._repeat,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "token_triggered_tags": self._token_triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def parts(self, chosen: Format) -> list[Part]:
        """The grammars, the start first. Raises SourceRefused."""
        start = self.expression(chosen)
        return [{"lark_grammar": "\n".join([f"start: {start}", *self._rules])}, *self._side_parts]

    def expression(self, chosen: Format) -> str:
        """The rule part of a format that something else may follow only if it is not endless. Raises SourceRefused."""
        kind = chosen.get("type")
        if kind not in self._formats:
            raise SourceRefused(
                f"structural_tag: format {kind!r} is not supported; supported: {', '.join(self._formats)}"
            )
        return self._formats[kind](chosen)

    # Leaves

    def _literal(self, text: str) -> str:
        return literal(text, self._options.special_tokens)

    def _json_schema(self, chosen: Format) -> str:
        if chosen.get("style", "json") != "json":
            raise SourceRefused(f"structural_tag: style {chosen['style']!r} of json_schema is not supported")
        if chosen.get("any_order"):
            raise SourceRefused("structural_tag: any_order of json_schema is not supported")
        return self._side({"json_schema": guided_schema(schema_of(chosen.get("json_schema")), self._json_options)})

    def _any_text(self, chosen: Format) -> str:
        return self._rule(f"/(.|\\n){_length(chosen)}/{self._without(chosen)}", terminal=True)

    def _tokens_but(self, chosen: Format, field: str, more: Sequence[int] = ()) -> str:
        if chosen.get("max_tokens") is not None:
            raise SourceRefused("structural_tag: max_tokens is not supported")
        excluded = [self._token_id(token) for token in chosen.get(field) or []]
        return any_token_but({*excluded, *more, *self._options.eos_token_ids})

    # What is made of other formats

    def _sequence(self, chosen: Format) -> str:
        *before, last = _formats(chosen, "elements")
        return " ".join([*(self._ended(element) for element in before), self.expression(last)])

    def _repeat(self, chosen: Format) -> str:
        least, most = chosen.get("min"), chosen.get("max")
        if not isinstance(least, int) or not isinstance(most, int) or least < 0 or (most < least and most != -1):
            raise SourceRefused("structural_tag: repeat needs min and max, with 0 <= min <= max or max = -1")
        return f"{self._bounded(chosen)}{{{least},{'' if most == -1 else most}}}"

    def _bounded(self, chosen: Format) -> str:
        return f"({self._ended(_format(chosen, 'content'))})"

    def _ended(self, chosen: Format) -> str:
        """The rule part of a format that something else follows."""
        if chosen.get("type") in ENDLESS:
            raise SourceRefused(
                f"structural_tag: {chosen['type']} before something else is not supported, except within a tag"
            )
        return self.expression(chosen)

    def _tag(self, chosen: Format) -> str:
        return f"{self._edge(chosen.get('begin'))} {self._behind_begin(chosen)}"

    def _behind_begin(self, tag: Format) -> str:
        """The content of a tag and its end."""
        content = _format(tag, "content")
        ends = tag.get("end")
        ends = ends if isinstance(ends, list) else [ends]
        match content.get("type"):
            case "any_text":
                return self._text_until(ends, self._text(content))
            case "any_tokens" if all(_is_token(end) for end in ends):
                before = self._tokens_but(content, "exclude_tokens", [self._token_id(end["token"]) for end in ends])
                return f"{before}* {self._either([self._edge(end) for end in ends])}"
            case "triggered_tags":
                return self._triggered_tags(content, ends)
            case "token_triggered_tags" if all(_is_token(end) for end in ends):
                return self._token_triggered_tags(content, ends)
        return f"{self._ended(content)} {self._either([self._edge(end) for end in ends])}"

    def _triggered_tags(self, chosen: Format, ends: Sequence[Any] = ()) -> str:
        """Free text and tags. ends: what ends the free text, if something does."""
        text = self._text(chosen)
        by_trigger: dict[str, list[str]] = {trigger: [] for trigger in _texts(chosen, "triggers")}
        bare: list[str] = []
        for tag in _formats(chosen, "tags"):
            begin = _text(tag, "begin")
            trigger = next((trigger for trigger in by_trigger if begin.startswith(trigger)), None)
            if trigger is None:
                raise SourceRefused(f"structural_tag: no trigger begins the tag {begin!r}")
            behind = self._rule(self._behind_begin(tag))
            by_trigger[trigger].append(f"{self._literal(begin[len(trigger) :])} {behind}")
            bare.append(f"{self._literal(begin)} {behind}")
        calls = [
            f"{self._text_until([trigger], text)} {self._either(tags)}" for trigger, tags in by_trigger.items() if tags
        ]
        tail = self._text_until(ends, text) if ends else text
        return self._calls(chosen, self._either(bare), self._either(calls), tail)

    def _token_triggered_tags(self, chosen: Format, ends: Sequence[Any] = ()) -> str:
        triggers = [self._token_id(token) for token in chosen.get("trigger_tokens") or []]
        end_ids = [self._token_id(end["token"]) for end in ends]
        free = f"{self._tokens_but(chosen, 'exclude_tokens', [*triggers, *end_ids])}*"
        tags = _formats(chosen, "tags")
        for tag in tags:
            if not _is_token(tag.get("begin")) or self._token_id(tag["begin"]["token"]) not in triggers:
                raise SourceRefused("structural_tag: a tag of token_triggered_tags begins with none of trigger_tokens")
        bare = self._either([self._rule(self._tag(tag)) for tag in tags])
        tail = f"{free} {self._either([one_token(end_id) for end_id in end_ids])}" if ends else free
        return self._calls(chosen, bare, f"{free} {bare}", tail)

    def _calls(self, chosen: Format, bare: str, call: str, tail: str) -> str:
        """Tags in free text. bare: a tag alone; call: free text and a tag; tail: the free text behind all tags."""
        if chosen.get("stop_after_first"):
            return bare if chosen.get("at_least_one") else self._either([call, tail])
        first = f"{bare} " if chosen.get("at_least_one") else ""
        return f"{first}({call})* {tail}"

    def _tags_with_separator(self, chosen: Format) -> str:
        tag = self._either([self._rule(self._tag(tag)) for tag in _formats(chosen, "tags")])
        separator = _text(chosen, "separator")
        more = "" if chosen.get("stop_after_first") else f" ({self._literal(separator)} {tag})*"
        return f"({tag}{more})" + ("" if chosen.get("at_least_one") else "?")

    # Free text

    def _text(self, chosen: Format) -> str:
        """The terminal of free text, without what a format excludes."""
        return self._any_text(chosen)

    def _text_until(self, ends: Sequence[Any], text: str) -> str:
        """Free text up to and including the first of some ends."""
        by_token = [end for end in ends if self._starts_with_token(end)]
        by_text = [end for end in ends if end not in by_token]
        options = [f"{text} {self._edge(end)}" for end in by_token]
        if by_text:
            if any(len(pieces(end, self._options.special_tokens)) > 1 for end in by_text):
                raise SourceRefused("structural_tag: a special token behind other text cannot end free text")
            options.append(self._rule(f"{text} {self._either([self._edge(end) for end in by_text])}", "[lazy]"))
        return self._either(options)

    def _starts_with_token(self, end: Any) -> bool:
        if _is_token(end):
            return True
        if not isinstance(end, str) or not end:
            raise SourceRefused("structural_tag: free text needs an end that is not empty")
        return pieces(end, self._options.special_tokens)[0] in self._options.special_tokens

    def _without(self, chosen: Format) -> str:
        excludes = _texts(chosen, "excludes") if chosen.get("excludes") else []
        if not excludes:
            return ""
        any_of_them = " | ".join(
            self._rule(f"/(.|\\n)*/ {json.dumps(e, ensure_ascii=False)} /(.|\\n)*/", terminal=True) for e in excludes
        )
        return f" & ~({any_of_them})"

    # Rules

    def _edge(self, edge: Any) -> str:
        """The begin or the end of a tag: a text, or a format of one token."""
        if _is_token(edge):
            return one_token(self._token_id(edge["token"]))
        if not isinstance(edge, str):
            raise SourceRefused("structural_tag: begin and end of a tag are texts or tokens")
        return self._literal(edge)

    def _token_id(self, token: Any) -> int:
        if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
            return token
        if isinstance(token, str) and token in self._options.special_tokens:
            return self._options.special_tokens[token]
        raise SourceRefused(f"structural_tag: {token!r} is no special token of the model, and no token id")

    def _rule(self, body: str, attributes: str = "", *, terminal: bool = False) -> str:
        name = f"T{len(self._rules)}" if terminal else f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _side(self, part: Part) -> str:
        name = f"part_{len(self._side_parts)}"
        self._side_parts.append({"name": name, **part})
        return f"@{name}"

    @staticmethod
    def _either(options: Sequence[str]) -> str:
        return options[0] if len(options) == 1 else f"({' | '.join(options)})"


def _from_structures(tag: Format) -> Format:
    """The older form as a format of the newer one."""
    tags = []
    for structure in _formats(tag, "structures"):
        content = {"type": "json_schema", "json_schema": structure.get("schema")}
        tags.append({"type": "tag", "begin": structure.get("begin"), "content": content, "end": structure.get("end")})
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


def _length(chosen: Format) -> str:
    """The repetition of a free text's characters."""
    if chosen.get("max_tokens") is not None:
        raise SourceRefused("structural_tag: max_tokens is not supported; max_chars is")
    most = chosen.get("max_chars")
    if most is None:
        return "*"
    if not isinstance(most, int) or most < 0:
        raise SourceRefused("structural_tag: max_chars must be a whole number, at least 0")
    return f"{{0,{most}}}"


def _is_token(edge: Any) -> bool:
    return isinstance(edge, dict) and edge.get("type") == "token"


def _text(chosen: Format, field: str) -> str:
    value = chosen.get(field)
    if not isinstance(value, str):
        raise SourceRefused(f"structural_tag: {field} of {chosen.get('type', 'a structure')} must be a string")
    return value


def _texts(chosen: Format, field: str) -> list[str]:
    values = chosen.get(field)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise SourceRefused(f"structural_tag: {field} must be a list of strings that are not empty")
    return values


def _format(chosen: Format, field: str) -> Format:
    value = chosen.get(field)
    if not isinstance(value, dict):
        raise SourceRefused(f"structural_tag: {field} of {chosen.get('type')} must be a format")
    return value


def _formats(chosen: Format, field: str) -> list[Format]:
    values = chosen.get(field)
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise SourceRefused(f"structural_tag: {field} must be a list of objects, at least one")
    return values
