"""The formats of known models.

Aliases are the names that vLLM gives these formats, where they differ.
"""

from pagewire_router.parsing.syntax import CallSyntax, Field, Maybe, ParameterSyntax, ReasoningFormat, ToolFormat

_JSON_IN_TAGS = CallSyntax(("<tool_call>", Field.CALL, "</tool_call>"))
_PLAIN_JSON = CallSyntax((Field.CALL,), only_at_start=True)
_PLAIN_JSON_LIST = CallSyntax((Field.CALLS,), only_at_start=True)
_PLAIN_PYTHON = CallSyntax((Field.PYTHON_CALLS,), only_at_start=True)

_XML_CALL = ("<function=", Field.NAME, ">", Field.PARAMETERS, "</function>")
_XML_PARAMETER = ParameterSyntax(
    ("<parameter=", Field.KEY, ">", Field.VALUE, "</parameter>"), is_framed=True, may_lack_end=True
)
_INVOKE_PARAMETER = ParameterSyntax(('<parameter name="', Field.KEY, '">', Field.VALUE, "</parameter>"))


def _deepseek_markup(name: str, space: str, section: str, aliases: tuple[str, ...] = ()) -> ToolFormat:
    """DeepSeek's XML, whose tags begin with a token of their own."""
    mark = f"｜DSML｜{space}"
    return ToolFormat(
        name,
        calls=(
            CallSyntax((f'<{mark}invoke name="', Field.NAME, '">', Field.PARAMETERS, f"</{mark}invoke>")),
            CallSyntax((f'<{mark}invoke name="', Field.NAME, '"/>')),
        ),
        parameter=ParameterSyntax(
            (
                *(f'<{mark}parameter name="', Field.KEY, '" string="', Field.IS_STRING, '">'),
                *(Field.VALUE, f"</{mark}parameter>"),
            )
        ),
        section=(f"<{mark}{section}>", f"</{mark}{section}>"),
        aliases=aliases,
    )


def _deepseek_tokens(name: str, aliases: tuple[str, ...], *middle: str | Field) -> ToolFormat:
    return ToolFormat(
        name,
        calls=(CallSyntax(("<｜tool▁call▁begin｜>", *middle, "<｜tool▁call▁end｜>")),),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        aliases=aliases,
    )


TOOL_FORMATS = (
    ToolFormat("hermes", calls=(_JSON_IN_TAGS,), aliases=("qwen25", "qwen3", "qwen", "longcat")),
    ToolFormat(
        "qwen3_coder",
        # Models leave out the opening tag at times.
        calls=(
            CallSyntax(("<tool_call>", *_XML_CALL, "</tool_call>")),
            CallSyntax((*_XML_CALL, Maybe(("</tool_call>",)))),
        ),
        parameter=_XML_PARAMETER,
        aliases=("qwen3_xml", "qwen3coder", "step3p5", "nemotron_v3"),
    ),
    ToolFormat(
        "seed_oss",
        calls=(CallSyntax(("<seed:tool_call>", *_XML_CALL, "</seed:tool_call>")),),
        parameter=_XML_PARAMETER,
    ),
    ToolFormat(
        "glm45",
        calls=(CallSyntax(("<tool_call>", Field.NAME, Field.PARAMETERS, "</tool_call>")),),
        parameter=ParameterSyntax(
            ("<arg_key>", Field.KEY, "</arg_key>", "<arg_value>", Field.VALUE, "</arg_value>"), may_lack_end=True
        ),
        aliases=("glm", "glm47", "glm4_moe"),
    ),
    ToolFormat(
        "llama3_json",
        calls=(CallSyntax(("<|python_tag|>", Field.CALL)), _PLAIN_JSON),
        forced_call=1,
        separator=";",
        strips_content=False,
        hidden=("<|eom_id|>", "<|eot_id|>"),
        aliases=("llama3", "llama4_json"),
    ),
    ToolFormat(
        "pythonic",
        calls=(CallSyntax(("<|python_start|>", Field.PYTHON_CALLS, Maybe(("<|python_end|>",)))), _PLAIN_PYTHON),
        forced_call=1,
        hidden=("<|python_start|>", "<|python_end|>", "<|eom|>", "<|eot|>"),
        strips_content=False,
        aliases=("llama4_pythonic", "lfm2"),
    ),
    ToolFormat(
        "olmo3",
        calls=(CallSyntax(("<function_calls>", Field.PYTHON_LINES, "</function_calls>")),),
        aliases=("olmo",),
    ),
    ToolFormat(
        "mistral",
        calls=(
            CallSyntax(("[TOOL_CALLS]", Field.CALLS)),
            CallSyntax(
                (
                    *("[TOOL_CALLS]", Field.NAME, Maybe(("[CALL_ID]", Field.ID)), Maybe(("[ARGS]",))),
                    Field.ARGUMENTS,
                )
            ),
        ),
        strips_content=False,
    ),
    _deepseek_tokens(
        "deepseek_v3",
        ("deepseek", "deepseek_r1"),
        *("function", "<｜tool▁sep｜>", Field.NAME, "```json", Field.ARGUMENTS, "```"),
    ),
    _deepseek_tokens("deepseek_v31", (), Field.NAME, "<｜tool▁sep｜>", Field.ARGUMENTS),
    _deepseek_markup("deepseek_v32", "", "function_calls"),
    _deepseek_markup("deepseek_v4", "", "tool_calls"),
    _deepseek_markup("deepseek_v41", " ", "calls"),
    ToolFormat(
        "kimi_k2",
        calls=(
            CallSyntax(
                (
                    *("<|tool_call_begin|>", Field.NAMING_ID, "<|tool_call_argument_begin|>"),
                    *(Field.ARGUMENTS, "<|tool_call_end|>"),
                )
            ),
        ),
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        strips_content=False,
        aliases=("kimi",),
    ),
    ToolFormat(
        "kimi_k3",
        calls=(
            CallSyntax(
                (
                    *('<|open|>call tool="', Field.NAME, '" index="', Field.INDEX, '"<|sep|>'),
                    *(Field.PARAMETERS, "<|close|>call<|sep|>"),
                )
            ),
        ),
        parameter=ParameterSyntax(
            (
                *('<|open|>argument key="', Field.KEY, '" type="', Field.TYPE, '"<|sep|>'),
                *(Field.VALUE, "<|close|>argument<|sep|>"),
            ),
            escapes_keys=True,
        ),
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        hidden=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
        strips_content=False,
    ),
    ToolFormat(
        "gemma4",
        calls=(CallSyntax(("<|tool_call>call:", Field.NAME, Field.GEMMA_ARGUMENTS, "<tool_call|>")),),
        hidden=("<turn|>", "<|tool_response>"),
        strips_content=False,
        aliases=("gemma",),
    ),
    ToolFormat("granite", calls=(CallSyntax(("<|tool_call|>", Field.CALLS)), _JSON_IN_TAGS, _PLAIN_JSON_LIST)),
    ToolFormat(
        "phi4_mini_json",
        calls=(
            CallSyntax(("<|tool_call|>", Field.CALLS, Maybe(("<|/tool_call|>",)))),
            CallSyntax(("functools", Field.CALLS)),
        ),
        aliases=("phi4", "phi4_mini"),
    ),
    ToolFormat(
        "cohere",
        calls=(CallSyntax(("<|START_ACTION|>", Field.CALLS, "<|END_ACTION|>")),),
        hidden=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>", "<|END_OF_TURN_TOKEN|>"),
        aliases=("cohere2", "cohere_command3", "command"),
    ),
    ToolFormat(
        "minimax_m2",
        calls=(CallSyntax(('<invoke name="', Field.NAME, '">', Field.PARAMETERS, "</invoke>")),),
        parameter=_INVOKE_PARAMETER,
        section=("<minimax:tool_call>", "</minimax:tool_call>"),
        only_in_section=True,
        aliases=("minimax",),
    ),
    ToolFormat("internlm", calls=(CallSyntax(("<|action_start|><|plugin|>", Field.CALL, Maybe(("<|action_end|>",)))),)),
    ToolFormat("jamba", calls=(CallSyntax(("<tool_calls>", Field.CALLS, "</tool_calls>")),)),
    ToolFormat("xlam", calls=(CallSyntax(("[TOOL_CALLS]", Field.CALLS)), _JSON_IN_TAGS, _PLAIN_JSON_LIST)),
)


def _think(name: str, *aliases: str) -> ReasoningFormat:
    return ReasoningFormat(name, "<think>", ("</think>",), aliases=aliases)


REASONING_FORMATS = (
    _think(
        "think",
        *("deepseek_r1", "deepseek_v3", "qwen3", "glm45", "minimax_m2", "kimi_k2", "holo2", "step3", "nemotron_v3"),
        *("ernie45", "hunyuan_a13b", "olmo3", "minimax_m2_append_think"),
    ),
    ReasoningFormat("mistral", "[THINK]", ("[/THINK]",), strips=False, may_hold_calls=False),
    ReasoningFormat("gemma4", "<|channel>thought", ("<channel|>",)),
    ReasoningFormat("granite", "Here is my thought process:", ("Here is my response:",)),
    ReasoningFormat("cohere", "<|START_THINKING|>", ("<|END_THINKING|>",), aliases=("cohere_command3",)),
    ReasoningFormat("seed_oss", "<seed:think>", ("</seed:think>",)),
    ReasoningFormat(
        "kimi_k3",
        "<|open|>think<|sep|>",
        ("<|close|>think<|sep|>", "<|open|>response<|sep|>"),
        strips=False,
        hidden=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
)

HARMONY = "harmony"
"""The format of gpt-oss. It marks tool calls, reasoning and content alike, see harmony.py."""
HARMONY_ALIASES = ("openai", "openai_gptoss", "gpt_oss", "gptoss")
