"""The fields that the routes of OpenAI's API have in common, with vLLM's names for what is not OpenAI's."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from pagewire.parameter_table import (
    BY_NAME,
    MAX_BAD_WORDS,
    MAX_INT32,
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_STOP_STRINGS,
    MAX_TEXT_CHARS,
    PARAMETERS,
    Parameter,
    Range,
)
from pagewire.parameter_table import Kind as ParameterKind
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.errors import HttpError, not_served, wrong
from pagewire_router.http_front.fields import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    LOGIT_BIAS,
    NUMBER,
    OBJECT,
    STRING,
    STRING_OR_STRINGS,
    STRINGS,
    TOKEN_IDS,
    Field,
    FieldTable,
    Schema,
    object_of,
    one_of,
)

_KINDS = {
    ParameterKind.INT: INTEGER,
    ParameterKind.FLOAT: NUMBER,
    ParameterKind.BOOL: BOOLEAN,
    ParameterKind.TEXTS: STRING_OR_STRINGS,
    ParameterKind.TOKEN_IDS: TOKEN_IDS,
    ParameterKind.BIASES: LOGIT_BIAS,
    ParameterKind.OBJECT: OBJECT,
}


def parameter_field(parameter: str, name: str | None = None) -> Field:
    """The field that sets a sampling parameter, and has its name if no other is given."""
    described = BY_NAME[parameter]
    kind = _KINDS[described.kind]
    kind = replace(kind, schema=_with_limits(kind.schema, described))
    return Field(name or parameter, kind, described.description, sets=parameter)


def _with_limits(schema: Schema, parameter: Parameter) -> Schema:
    """The schema of a parameter's values, with what is accepted of them."""
    default = {} if parameter.default is None else {"default": parameter.default}
    limits = _limits(parameter.accepted)
    match parameter.kind:
        case ParameterKind.INT | ParameterKind.FLOAT:
            is_integer = parameter.kind is ParameterKind.INT
            return {**schema, **({"maximum": MAX_INT32} if is_integer else {}), **limits, **default}
        case ParameterKind.BIASES:
            biases = {"type": "number", **limits}
            names = {"pattern": "^[0-9]{1,10}$"}
            return {
                "type": "object",
                "propertyNames": names,
                "additionalProperties": biases,
                "maxProperties": MAX_LOGIT_BIAS_ENTRIES,
            }
        case ParameterKind.TEXTS:
            text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS}
            most = MAX_STOP_STRINGS if parameter.name == "stop" else MAX_BAD_WORDS
            return {"anyOf": [text, {"type": "array", "items": text, "maxItems": most}]}
        case _:
            return {**schema, **default}


def _limits(accepted: Range | None) -> Schema:
    """The keywords of a range."""
    if accepted is None:
        return {}
    limits: Schema = {"exclusiveMinimum" if accepted.excludes_low else "minimum": accepted.low}
    if accepted.high != math.inf:
        limits["maximum"] = accepted.high
    if accepted.excludes_zero:
        limits["not"] = {"enum": [0]}
    return limits


TOP_LOGPROBS = replace(INTEGER, schema=_with_limits(INTEGER.schema, BY_NAME["logprobs"]))
STREAM = Field("stream", BOOLEAN, "Answers with server-sent events.")
MODEL = Field("model", STRING, "Name of the served model; if absent, whatever is served.")

STREAM_OPTIONS = FieldTable(
    Field("include_usage", BOOLEAN, "Ends the stream with an event that has the token counts."),
    Field("continuous_usage_stats", BOOLEAN, "Every event has the token counts so far."),
    Field("include_obfuscation", BOOLEAN, "Accepted; nothing is added to events.", only=(False, True)),
)

_OF_THE_ROUTE = frozenset(
    ("max_tokens", "logprobs", "prompt_logprobs", "detokenize", "structured_outputs", "extra_args")
)
"""Parameters that each route sets in its own way, or that are the front's own."""
SAMPLING = (
    *(parameter_field(parameter.name) for parameter in PARAMETERS if parameter.name not in _OF_THE_ROUTE),
    parameter_field("extra_args", "vllm_xargs"),
)
"""Fields that set a sampling parameter of the same name. Admission checks their ranges."""

REQUEST: tuple[Field, ...] = (
    MODEL,
    STREAM,
    Field("stream_options", object_of(STREAM_OPTIONS), "Options of a stream."),
    Field("priority", INTEGER, "Lower runs first."),
    Field("cache_salt", STRING, "Requests share cached prefixes only with requests of the same salt."),
    Field("request_id", STRING, "The id of the request; unique among those that are alive."),
    Field("return_token_ids", BOOLEAN, "Returns the token ids of prompt and output."),
    Field("return_tokens_as_token_ids", BOOLEAN, "Writes tokens beside log-probabilities as token_id:ID."),
    Field("structured_outputs", OBJECT, "What the output must match, in vLLM's form."),
    Field("response_format", OBJECT, "What the output must match: text, json_object or json_schema."),
)

WITHOUT_EFFECT: tuple[Field, ...] = (
    Field("user", STRING, "Accepted, without effect."),
    Field("metadata", OBJECT, "Accepted, without effect."),
    Field("safety_identifier", STRING, "Accepted, without effect."),
    Field("service_tier", STRING, "Accepted, without effect."),
    Field("prompt_cache_key", STRING, "Accepted, without effect: prefixes are cached in any case."),
    Field("prompt_cache_retention", STRING, "Accepted, without effect."),
    Field("session_id", STRING, "Accepted, without effect."),
    Field("stream_interval", INTEGER, "Accepted, without effect: chunks follow the steps and the load."),
)

_OTHER_CONSTRAINTS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "regex",
    "ebnf",
    "grammar",
)
"""What other servers, and earlier ones of vLLM, call the parts of structured_outputs."""
_OTHER_PARAMETERS = (
    "num_beams",
    "typical_p",
    "top_a",
    "tfs",
    "mirostat",
    "xtc_probability",
    "dry_multiplier",
    "lora_path",
    "custom_logit_processor",
)
"""Parameters of sampling, and of what is sampled, that other servers have."""
REFUSED: tuple[Field, ...] = (
    Field("store", BOOLEAN, "Nothing is stored.", only=(False,)),
    Field("watermarking", ANYTHING, "Not served.", only=(False,)),
    Field("logprob_token_ids", ANYTHING, "Not served.", only=([],)),
    Field("truncation_side", STRING, "The last tokens are kept.", only=("left",)),
    Field("return_token_offsets", BOOLEAN, "Not served.", only=(False,)),
    Field("mm_processor_kwargs", ANYTHING, "Not served: prompts are text.", only=({},)),
    Field("media_io_kwargs", ANYTHING, "Not served: prompts are text.", only=({},)),
    Field("ec_transfer_params", ANYTHING, "Not served.", only=()),
    Field("logits_processors", ANYTHING, "Not served.", only=([],)),
    Field("kv_transfer_params", ANYTHING, "Not served.", only=()),
    Field("repetition_detection", ANYTHING, "Not served.", only=()),
    Field("thinking_token_budget", INTEGER, "Not served.", only=()),
    *(Field(name, ANYTHING, "Not served; use structured_outputs.", only=()) for name in _OTHER_CONSTRAINTS),
    *(Field(name, ANYTHING, "Not served.", only=()) for name in _OTHER_PARAMETERS),
)
"""Fields that change the output of other servers. Whoever sends one must not take the answer for what was asked."""

FOR_COMPLETIONS: tuple[Field, ...] = (
    Field("use_beam_search", BOOLEAN, "Not served on this route.", only=(False,)),
    Field("prompt_logprobs", INTEGER, "Not served on this route.", only=()),
)
"""Refused where the answer has no place for several outputs or for the prompt's tokens."""

CONSTRAINT = FieldTable(
    Field("json", one_of(STRING, OBJECT), "A JSON schema."),
    Field("regex", STRING, "A regular expression."),
    Field("choice", STRINGS, "One of several strings."),
    Field("grammar", STRING, "A context-free grammar."),
    Field("json_object", BOOLEAN, "Any JSON object."),
    Field("structural_tag", one_of(STRING, OBJECT), "Free text with constrained parts."),
    Field("disable_any_whitespace", BOOLEAN, "Allows no whitespace between tokens of JSON."),
    Field("disable_additional_properties", BOOLEAN, "Forbids properties that the schema does not name."),
    Field("whitespace_pattern", STRING, "A regular expression for whitespace."),
    Field("disable_fallback", BOOLEAN, "Accepted, without effect: there is one backend."),
)
_JSON_SCHEMA = FieldTable(
    Field("name", STRING, "Accepted, without effect."),
    Field("description", STRING, "Accepted, without effect."),
    Field("schema", OBJECT, "The JSON schema."),
    Field("strict", BOOLEAN, "Accepted: the schema is always kept to."),
)


def generate_request(values: Mapping[str, Any], table: FieldTable) -> inference_pb2.GenerateRequest:
    """A request without a prompt, with the parameters that the values give. Raises HttpError."""
    message = inference_pb2.GenerateRequest()
    for name in ("model", "request_id", "cache_salt", "priority"):
        if name in values:
            try:
                setattr(message, name, values[name])
            except ValueError:
                raise wrong(name, "is out of range") from None
    message.return_prompt_token_ids = values.get("return_token_ids", False)
    table.set_params(values, message.sampling_params)
    _constrain(values, message.sampling_params)
    return message


def check_prompt_logprobs(values: Mapping[str, Any]) -> None:
    """Raises HttpError if log-probabilities of the prompt are asked of a stream: its chunks have no place for them."""
    if values.get("stream") and values.get("prompt_logprobs") is not None:
        raise wrong("prompt_logprobs", "is given with stream; echo and logprobs tell them in a stream of completions")


def constraint_field(values: Mapping[str, Any]) -> str:
    """The field that says what the output must match."""
    return "structured_outputs" if "structured_outputs" in values else "response_format"


def _constrain(values: Mapping[str, Any], params: inference_pb2.SamplingParams) -> None:
    """Sets what the output must match, in either of the forms that clients may give it."""
    constraint = None
    if "structured_outputs" in values:
        constraint = _structured_outputs(CONSTRAINT.read(values["structured_outputs"], "structured_outputs."))
    if "response_format" in values:
        given = values["response_format"]
        formatted = read_format(given, given.get("json_schema"), "response_format", "response_format.json_schema")
        if constraint is not None and formatted is not None:
            raise wrong("response_format", "is given together with structured_outputs; choose one")
        constraint = formatted or constraint
    if constraint is not None:
        params.structured_outputs.CopyFrom(constraint)


def _structured_outputs(given: dict[str, Any]) -> inference_pb2.StructuredOutputs:
    given.pop("disable_fallback", None)
    if "choice" in given:
        given["choice"] = inference_pb2.Choice(options=given["choice"])
    for name in ("json", "structural_tag"):
        if isinstance(given.get(name), dict):
            given[name] = orjson.dumps(given[name]).decode()
    constraints = [field.name for field in inference_pb2.StructuredOutputs.DESCRIPTOR.oneofs[0].fields]
    num_given = sum(name in given for name in constraints)
    if num_given != 1:
        raise wrong("structured_outputs", f"holds {num_given} constraints; accepted: one of {', '.join(constraints)}")
    return inference_pb2.StructuredOutputs(**given)


def read_format(
    given: dict[str, Any], described: Any, name: str, described_name: str
) -> inference_pb2.StructuredOutputs | None:
    """What the output must match; None: it is free. Raises HttpError.

    Args:
        described: a JSON schema beside its name, if the type is json_schema.
        name: of the field that is given.
        described_name: of the part of it that is described.
    """
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return inference_pb2.StructuredOutputs(json_object=True)
    if kind == "structural_tag":
        return inference_pb2.StructuredOutputs(structural_tag=orjson.dumps(given).decode())
    if kind == "json_schema":
        if not isinstance(described, dict):
            raise HttpError(400, f"{described_name}: is missing", param=described_name)
        schema = _JSON_SCHEMA.read(described, f"{described_name}.").get("schema", {})
        return inference_pb2.StructuredOutputs(json=orjson.dumps(schema).decode())
    raise not_served(f"{name}.type")
