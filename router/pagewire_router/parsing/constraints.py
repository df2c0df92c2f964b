"""Grammars that make a model call a tool, for tool_choice "required" and a named tool.

They are written from the same tables that calls are read by, in Lark's notation as llguidance has it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pagewire.v1 import inference_pb2

from pagewire_router.parsing.parser import OutputFormat
from pagewire_router.parsing.syntax import CallSyntax, Field, Maybe, ParameterSyntax, ToolFormat

_SPACE = r"/[ \n]{0,2}/"
"""Bounded, since some models write whitespace for ever if nothing else is allowed."""
_HARMONY_CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
_ANALYSIS = {"begin": "<|channel|>analysis<|message|>", "end": "<|end|><|start|>assistant"}
_FINAL = "<|channel|>final<|message|>"
_STRING = "string"
MAX_CHARS = 1 << 19
"""Longest grammar; longer ones are not served. Definitions that parameters share are written for each of them."""

_TIGHT = (Field.NAME, Field.INDEX, Field.NAMING_ID, Field.PARAMETERS, Field.PYTHON_LINES)
"""Fields with no whitespace before them, or with what they need of it."""


class NotConstrainable(ValueError):
    """Calls in this format cannot be described by a grammar; the message says why."""


def call_constraint(
    format: OutputFormat,
    tools: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, int],
    *,
    name: str | None = None,
    max_calls: int | None = None,
) -> inference_pb2.StructuredOutputs:
    """What makes a model call one tool at least and write nothing else. Raises NotConstrainable.

    tools: those that may be called, in OpenAI's form.
    special_tokens: ids of the model's special tokens by their text.
    name: the one tool to call; None: any.
    max_calls: most calls; None: no limit.
    """
    functions = [tool.get("function", tool) for tool in tools]
    functions = [function for function in functions if name is None or function.get("name") == name]
    if not functions:
        raise NotConstrainable("no tool has this name" if name else "no tools are offered")
    grammar = _Grammar(special_tokens).write(format, functions, max_calls)
    return inference_pb2.StructuredOutputs(grammar=grammar)


def let_analyse(outputs: inference_pb2.StructuredOutputs, *, is_call: bool) -> None:
    """Lets messages of analysis come before the message that a constraint is about, in harmony.

    is_call: the constraint is about the message as a whole; otherwise it is about the text of the final message.
    """
    inner: dict[str, Any]
    match outputs.WhichOneof("constraint"):
        case "json":
            try:
                inner = {"type": "json_schema", "json_schema": json.loads(outputs.json)}
            except ValueError:
                return  # The shard says what is wrong.
        case "json_object":
            inner = {"type": "json_schema", "json_schema": {"type": "object"}}
        case "regex":
            inner = {"type": "regex", "pattern": outputs.regex}
        case "grammar":
            inner = {"type": "grammar", "grammar": outputs.grammar}
        case "choice":
            options = [{"type": "const_string", "value": option} for option in outputs.choice.options]
            inner = {"type": "or", "elements": options}
        case _:
            return
    analysis = {**_ANALYSIS, "type": "tag", "content": {"type": "any_text"}}
    header = [] if is_call else [{"type": "const_string", "value": _FINAL}]
    elements = [{"type": "star", "content": analysis}, *header, inner]
    outputs.structural_tag = json.dumps(
        {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}, ensure_ascii=False
    )


class _Grammar:
    """A grammar being written."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        marks = sorted(special_tokens, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, marks)) + ")") if marks else None
        self._rules: list[str] = []
        self._num_chars = 0

    def write(self, format: OutputFormat, functions: Sequence[Mapping[str, Any]], max_calls: int | None) -> str:
        if format.is_harmony:
            # What ends a call ends the output, so there is one.
            calls = [f"{self._text(_HARMONY_CALL.format(f['name']))} {self._json(_schema(f))}" for f in functions]
            self._rule("start", " | ".join(calls))
        elif format.tools is None:
            raise NotConstrainable("the format of the model's tool calls is not known; name it with --tool-call-parser")
        else:
            self._write_calls(format.tools, functions, max_calls)
        return "\n".join(reversed(self._rules))

    def _write_calls(self, tools: ToolFormat, functions: Sequence[Mapping[str, Any]], max_calls: int | None) -> None:
        syntax = tools.calls[tools.forced_call]
        if tools.name == "mistral" and "[ARGS]" in self._special_tokens:  # Tokenizers from v11 on
            syntax = tools.calls[1]
        content = {piece for piece in syntax.pieces if isinstance(piece, Field)}
        calls = [self._rule(f"call_{index}", self._call(tools, syntax, f)) for index, f in enumerate(functions)]
        any_call = self._rule("call", " | ".join(calls))
        # A call without a mark of its own, or a list of them, comes once.
        is_single = max_calls == 1 or (syntax.only_at_start and not tools.separator)
        if is_single or content & {Field.CALLS, Field.PYTHON_CALLS}:
            calls_rule = any_call
        else:
            more = f"{self._text(tools.separator) or _SPACE} {any_call}"
            most = "" if max_calls is None else str(max_calls - 1)
            calls_rule = f"{any_call} ({more}){{0,{most}}}"
        if tools.section is not None:
            opening, closing = tools.section
            calls_rule = f"{self._text(opening)} {_SPACE} {calls_rule} {_SPACE} {self._text(closing)}"
        self._rule("start", calls_rule)

    def _call(self, tools: ToolFormat, syntax: CallSyntax, function: Mapping[str, Any]) -> str:
        written: list[str] = []
        for piece, text in zip(syntax.pieces, self._pieces(tools, syntax, function), strict=True):
            # The parser allows whitespace in these places, and templates often have it there.
            if written and piece not in _TIGHT and not (isinstance(piece, str) and piece[0] in '">'):
                written.append(_SPACE)
            written.append(text)
        return " ".join(written)

    def _pieces(self, tools: ToolFormat, syntax: CallSyntax, function: Mapping[str, Any]) -> Iterator[str]:
        name, schema = str(function["name"]), _schema(function)
        for piece in syntax.pieces:
            match piece:
                case str():
                    yield self._text(piece)
                case Maybe():
                    # Marks that may be missing, but that the model knows.
                    texts = [part for part in piece.pieces if isinstance(part, str)]
                    yield " ".join(map(self._text, texts)) if len(texts) == len(piece.pieces) else ""
                case Field.NAME:
                    yield self._text(name)
                case Field.NAMING_ID:
                    yield f"{self._text(f'functions.{name}:')} /[0-9]+/"
                case Field.INDEX:
                    yield "/[0-9]+/"
                case Field.ARGUMENTS:
                    yield self._json(schema)
                case Field.CALL:
                    yield self._json(_call_schema(tools, name, schema))
                case Field.CALLS:
                    yield f'"[" {self._json(_call_schema(tools, name, schema))} "]"'
                case Field.PARAMETERS:
                    assert tools.parameter is not None
                    yield self._parameters(tools.parameter, schema)
                case Field.PYTHON_CALLS:
                    yield f'"[" {self._python_call(name, schema)} "]"'
                case Field.PYTHON_LINES:
                    yield f'"\\n" {self._python_call(name, schema)} "\\n"'
                case _:
                    raise NotConstrainable(f"no grammar describes the {piece.value} of {tools.name}")

    def _parameters(self, syntax: ParameterSyntax, schema: Mapping[str, Any]) -> str:
        required = _required(schema)
        parts = []
        for key, value in _properties(schema).items():
            one = self._parameter(syntax, str(key), _with_definitions(value, schema))
            parts.append(f"{_SPACE} {one}" if key in required else f"({_SPACE} {one})?")
        return " ".join([*parts, _SPACE])

    def _parameter(self, syntax: ParameterSyntax, key: str, schema: Any) -> str:
        is_text = isinstance(schema, Mapping) and schema.get("type") == _STRING and "enum" not in schema
        end = syntax.value_end
        frame = "\n" if syntax.is_framed else ""
        parts: list[str] = []
        for before, piece in zip((None, *syntax.pieces), syntax.pieces, strict=False):
            if isinstance(before, str) and isinstance(piece, str):
                parts.append(_SPACE)
            match piece:
                case Field.KEY:
                    parts.append(self._text(key))
                case Field.IS_STRING:
                    parts.append(self._text("true" if is_text else "false"))
                case Field.TYPE:
                    parts.append(self._text(_STRING if is_text else str(schema.get("type", "object"))))
                case Field.VALUE if is_text:
                    parts.append(f"{self._text(frame)} {self._free_text(frame + end)}")
                case Field.VALUE:
                    value = self._plain(schema)
                    parts.append(f"{self._text(frame)} {value} {self._text(frame + end)}" if frame else value)
                case str() if piece == end and (is_text or frame):
                    pass  # Read with the value.
                case str():
                    parts.append(self._text(piece))
                case _:
                    raise NotConstrainable(f"no grammar describes the {piece.value} of a parameter")
        return " ".join(parts)

    def _free_text(self, end: str) -> str:
        """Any text up to and including its end."""
        first = self._text(end).split(" ", 1)[0]
        if first.startswith("<["):  # Text holds no special tokens, so this ends it.
            return f"/(.|\\n)*/ {self._text(end)}"
        return self._rule(f"text_{len(self._rules)}", "/(.|\\n)*/", suffix=end)

    def _plain(self, schema: Any) -> str:
        """A value that is not free text: plain words of an enumeration, JSON otherwise."""
        options = schema.get("enum") if isinstance(schema, Mapping) else None
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            return "(" + " | ".join(map(self._text, options)) + ")"
        return self._json(schema)

    def _python_call(self, name: str, schema: Mapping[str, Any]) -> str:
        needed = _required(schema)
        required = [key for key in _properties(schema) if key in needed]
        optional = [key for key in _properties(schema) if key not in needed]
        words = [f"{self._text(f'{key}=')} {self._json(_property(schema, key))}" for key in (*required, *optional)]
        written = ' ", " '.join(words[: len(required)])
        for index, word in enumerate(words[len(required) :]):
            written += f' (", " {word})?' if required else (f" ({word})?" if index == 0 else "")
        return f'{self._text(f"{name}(")} {written} ")"'

    def _text(self, text: str) -> str:
        """A text; the special tokens in it by their ids."""
        if not text:
            return ""
        pieces = [text] if self._cut is None else [piece for piece in self._cut.split(text) if piece]
        ids = self._special_tokens
        return " ".join(f"<[{ids[p]}]>" if p in ids else json.dumps(p, ensure_ascii=False) for p in pieces)

    def _json(self, schema: Any) -> str:
        return self._rule(f"json_{len(self._rules)}", f"%json {json.dumps(_written_as_in_templates(schema))}")

    def _rule(self, name: str, body: str, *, suffix: str | None = None) -> str:
        attributes = "" if suffix is None else f"[suffix={json.dumps(suffix, ensure_ascii=False)}]"
        self._num_chars += len(body)
        if self._num_chars > MAX_CHARS:
            raise NotConstrainable(f"the grammar of the tools has more than {MAX_CHARS:,} characters")
        self._rules.append(f"{name}{attributes}: {body}")
        return name


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments. Those that it does not name are of no use, unless it says that they are."""
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"additionalProperties": False, **schema} if "properties" in schema else dict(schema)


def _written_as_in_templates(schema: Any) -> Any:
    """The schema with the whitespace that chat templates write. Where it is free some models write nothing else."""
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {**schema, "x-guidance": spaces} if isinstance(schema, Mapping) else schema


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters that a schema names; none if they are malformed."""
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _required(schema: Mapping[str, Any]) -> frozenset[str]:
    """The names of the parameters that a call has to give."""
    names = schema.get("required")
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _property(schema: Mapping[str, Any], key: str) -> Any:
    return _with_definitions(schema["properties"][key], schema)


def _with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema out of another one, with the definitions that it may refer to."""
    shared = {word: root[word] for word in ("$defs", "definitions") if word in root}
    return {**shared, **schema} if isinstance(schema, Mapping) and shared else schema


def _call_schema(tools: ToolFormat, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with name and arguments."""
    keys = {"cohere": ("tool_name", "parameters"), "llama3_json": ("name", "parameters")}
    name_key, arguments_key = keys.get(tools.name, ("name", "arguments"))
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    return {
        **shared,
        "type": "object",
        "properties": {name_key: {"const": name}, arguments_key: schema},
        "required": [name_key, arguments_key],
        "additionalProperties": False,
    }
