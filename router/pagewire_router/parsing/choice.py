"""Chooses the format of a model's output: by name, or by what its chat template and its vocabulary hold."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pagewire.v1 import inference_pb2

from pagewire_router.parsing.constraints import NotConstrainable, call_constraint, let_analyse
from pagewire_router.parsing.formats import HARMONY, HARMONY_ALIASES, REASONING_FORMATS, TOOL_FORMATS
from pagewire_router.parsing.parser import OutputFormat, Parser
from pagewire_router.parsing.reasoning_tokens import ReasoningMarks, ReasoningTokens
from pagewire_router.parsing.response_template import ResponseTemplate, TemplateUnusable
from pagewire_router.parsing.syntax import ReasoningFormat, ToolFormat

if TYPE_CHECKING:
    from pagewire_router.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

AUTO = "auto"
"""The name that stands for what the model's files say."""
NONE = "none"
"""The name that stands for no format."""

_TOOL_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kimi_k3", ("<|open|>", "<|sep|>")),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("deepseek_v41", ("｜DSML｜ calls",)),
    ("deepseek_v4", ("｜DSML｜tool_calls",)),
    ("deepseek_v32", ("｜DSML｜",)),
    ("deepseek_v3", ("<｜tool▁call▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁call▁begin｜>",)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("glm45", ("<arg_key>",)),
    ("gemma4", ("<|tool_call>", "<tool_call|>")),
    ("cohere", ("<|START_ACTION|>",)),
    ("phi4_mini_json", ("<|tool_call|>", "<|/tool_call|>")),
    ("granite", ("<|tool_call|>",)),
    ("olmo3", ("<function_calls>",)),
    ("internlm", ("<|action_start|>", "<|plugin|>")),
    ("jamba", ("<tool_calls>",)),
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("pythonic", ("<|python_start|>",)),
    ("llama3_json", ("<|python_tag|>",)),
)
"""Tool formats and the texts in a model's files that tell each of them from those below it."""
_REASONING_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kimi_k3", ("<|open|>", "<|sep|>")),
    ("mistral", ("[THINK]", "[/THINK]")),
    ("gemma4", ("<|channel>", "<channel|>")),
    ("cohere", ("<|START_THINKING|>",)),
    ("seed_oss", ("<seed:think>",)),
    ("think", ("<think>", "</think>")),
    ("granite", ("Here is my thought process:",)),
)
_HARMONY_SIGNS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

F = TypeVar("F", ToolFormat, ReasoningFormat)


class UnknownFormat(ValueError):
    """No format has this name; the message lists those there are."""


def _by_name(formats: Sequence[F]) -> dict[str, F]:
    aliases = {alias: format for format in formats for alias in format.aliases}
    return aliases | {format.name: format for format in formats}


TOOL_FORMAT_NAMES = _by_name(TOOL_FORMATS)
REASONING_FORMAT_NAMES = _by_name(REASONING_FORMATS)


def choose_format(
    tool_parser: str,
    reasoning_parser: str,
    *,
    templates: Mapping[str, str],
    tokens: Collection[str],
    response_template: Any = None,
) -> OutputFormat:
    """The format of a model's output. Raises UnknownFormat.

    tool_parser, reasoning_parser: name of a format, or an alias; AUTO; NONE.
    templates: the model's chat templates by name.
    tokens: texts of the vocabulary's added tokens, special ones among them.
    response_template: the model's own description of its output, if it has one. It counts unless a format is named.
    """
    if response_template is not None and tool_parser == reasoning_parser == AUTO:
        try:
            return OutputFormat(template=ResponseTemplate.from_json(response_template))
        except TemplateUnusable as error:
            _log.warning("The model's response_template is left aside, its chat template says the format: %s", error)
    detected = detect_format(templates, tokens)
    asked = {tool_parser, reasoning_parser}
    if asked & {HARMONY, *HARMONY_ALIASES} or (asked == {AUTO} and detected.is_harmony):
        return OutputFormat(is_harmony=True)
    return OutputFormat(
        _chosen(tool_parser, TOOL_FORMAT_NAMES, detected.tools, "tool-call parser"),
        _chosen(reasoning_parser, REASONING_FORMAT_NAMES, detected.reasoning, "reasoning parser"),
    )


def _chosen(name: str, formats: Mapping[str, F], detected: F | None, kind: str) -> F | None:
    if name == AUTO:
        return detected
    if name == NONE:
        return None
    if name.replace("-", "_") not in formats:
        names = ", ".join(sorted({AUTO, NONE, HARMONY, *formats}))
        raise UnknownFormat(f'no {kind} is called "{name}"; there are {names}')
    return formats[name.replace("-", "_")]


def detect_format(templates: Mapping[str, str], tokens: Collection[str]) -> OutputFormat:
    """The format that a model's chat templates and added tokens speak for."""
    # A template names what the model writes; the vocabulary may hold marks of formats that it was not trained for.
    for source in ("\n".join(templates.values()), "\n".join([*templates.values(), *tokens])):
        if all(sign in source for sign in _HARMONY_SIGNS):
            return OutputFormat(is_harmony=True)
        tools = _first_sign(_TOOL_SIGNS, source)
        if tools is not None:
            break
    reasoning = _first_sign(_REASONING_SIGNS, "\n".join([*templates.values(), *tokens]))
    return OutputFormat(
        None if tools is None else TOOL_FORMAT_NAMES[tools],
        None if reasoning is None else REASONING_FORMAT_NAMES[reasoning],
    )


def _first_sign(signs: Sequence[tuple[str, tuple[str, ...]]], source: str) -> str | None:
    return next((name for name, texts in signs if all(text in source for text in texts)), None)


class OutputParsers:
    """Makes the parsers of one model's outputs. The text they are fed must have its special tokens."""

    def __init__(
        self, format: OutputFormat, special_tokens: Mapping[str, int], added_tokens: Mapping[str, int] | None = None
    ) -> None:
        """
        special_tokens: ids of the model's special tokens by their text.
        added_tokens: those of all tokens beside the vocabulary proper; None: the same.
        """
        self.format = format
        self._marks = ReasoningMarks.of(format.reasoning, special_tokens if added_tokens is None else added_tokens)
        self._special_tokens = special_tokens
        self._hidden = tuple(special_tokens)

    @classmethod
    def of_model(cls, tokenizer: "Tokenizer", tool_parser: str, reasoning_parser: str) -> "OutputParsers":
        """Those for a model's format, see choose_format(). Raises UnknownFormat."""
        format = choose_format(
            tool_parser,
            reasoning_parser,
            templates=tokenizer.chat_templates.sources,
            tokens=tokenizer.added_tokens(),
            response_template=tokenizer.response_template,
        )
        return cls(format, tokenizer.added_tokens(special_only=True), tokenizer.added_tokens())

    def constraint(
        self, tools: Sequence[Mapping[str, Any]], *, name: str | None = None, max_calls: int | None = None
    ) -> inference_pb2.StructuredOutputs | None:
        """What makes the model call a tool in its own format, see call_constraint(). None: it has no grammar."""
        if self.format.template is not None:
            return None
        try:
            return call_constraint(self.format, tools, self._special_tokens, name=name, max_calls=max_calls)
        except NotConstrainable:
            return None

    def let_reason(self, outputs: inference_pb2.StructuredOutputs, *, is_call: bool) -> None:
        """Lets a constraint begin behind the reasoning, if there is any.

        is_call: it is what constraint() has returned; otherwise it is about the content.
        """
        if self.format.is_harmony:
            let_analyse(outputs, is_call=is_call)
        elif (marks := self.reasoning_marks) is not None and not outputs.HasField("reasoning_end"):
            outputs.reasoning_start, outputs.reasoning_end = marks

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """What opens and what closes the reasoning; None: there is none, or it has no such marks."""
        if self.format.template is not None:
            return self.format.template.reasoning_marks
        reasoning = self.format.reasoning
        return None if reasoning is None else (reasoning.opening, reasoning.closings[0])

    def reasoning_tokens(self, *, prompt: str) -> ReasoningTokens:
        """Counts the reasoning of one output, see new()."""
        reasoning = self.format.reasoning
        is_open = reasoning is not None and prompt.rstrip().endswith(reasoning.opening)
        return ReasoningTokens(self._marks, is_open=is_open)

    def reasoning_reader(self, *, prompt: str, skip_special_tokens: bool = True) -> Parser:
        """A parser of what is not content, for outputs whose content has another form than the model's own."""
        hidden = self._hidden if skip_special_tokens else ()
        format = OutputFormat(reasoning=self.format.reasoning, template=self.format.template)
        return Parser(format, prompt=prompt, hidden=hidden)

    def new(
        self, *, tools: Sequence[Mapping[str, Any]] = (), prompt: str = "", skip_special_tokens: bool = True
    ) -> Parser:
        """A parser for one output.

        tools: the tools that may be called, in OpenAI's form.
        prompt: the prompt, or its end, with special tokens.
        skip_special_tokens: leaves special tokens out of content and reasoning.
        """
        hidden = self._hidden if skip_special_tokens else ()
        return Parser(self.format, tools=tools, prompt=prompt, hidden=hidden)
