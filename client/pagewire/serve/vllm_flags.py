"""Flags of `vllm serve` that `pagewire serve` knows: translated, taken without effect, or refused by name.

They are not in the help: it lists pagewire's own flags, and docs/http.md says what becomes of these.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pagewire.errors import InvalidRequest
from pagewire.serve.engine_arguments import ENGINE_ARGUMENTS, FLAGS, translate, without_effect
from pagewire.serve.options import MODEL_OPTIONS

_DEST = "vllm_arguments"
_RENAMED = {
    "ssl_certfile": "tls_cert",
    "ssl_keyfile": "tls_key",
    "ssl_ca_certs": "tls_client_ca",
    "allowed_origins": "http_cors_origins",
}
"""Fields of ServeConfig by the flags that set them."""
_WITHOUT_EFFECT = (
    *("api_server_count", "disable_fastapi_docs", "disable_uvicorn_access_log", "enable_auto_tool_choice"),
    *("enable_prompt_tokens_details", "enable_request_id_headers", "enable_server_load_tracking"),
    *("h11_max_header_count", "h11_max_incomplete_event_size", "log_config_file", "log_error_stack", "max_log_len"),
    *("response_role", "uvicorn_log_level", "disable_access_log_for_endpoints", "enable_log_outputs"),
)
"""Flags that change no answer: what they switch on is always on, or there is nothing to switch."""
_REFUSED = {
    "api_key": "keys are read from a file, which other users of the machine cannot see in the list of processes: "
    "write it there, one key on each line, and give --api-keys FILE",
    "chat_template": "templates come with the model; --trust-request-chat-template takes those of clients",
    "chat_template_content_format": "requests say it: chat_template_content_format",
    "default_chat_template_kwargs": "requests say it: chat_template_kwargs",
    "enable_force_include_usage": "requests say it: stream_options",
    "enable_tokenizer_info_endpoint": "not served",
    "grpc": "gRPC is always served: see --port and --http-port",
    "headless": "pagewire-shard runs the shards of another machine",
    "lora_modules": "adapters are not served",
    "middleware": "not served",
    "return_tokens_as_token_ids": "requests say it: return_tokens_as_token_ids",
    "root_path": "not served: let the proxy rewrite paths",
    "ssl_cert_reqs": "--tls-client-ca asks clients for certificates",
    "ssl_ciphers": "not served",
    "tool_parser_plugin": "no code is loaded",
    "reasoning_parser_plugin": "no code is loaded",
}
"""Flags that are refused, and what to do in their place."""
_SWITCHES = frozenset(
    name
    for name in (*_WITHOUT_EFFECT, *_REFUSED)
    if name.startswith(("enable_", "disable_"))
    or name in ("grpc", "headless", "log_error_stack", "return_tokens_as_token_ids")
)


class _Take(argparse.Action):
    """Keeps a flag and its value for vllm_options()."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        name = self.dest.removeprefix(f"{_DEST}.")
        if self.nargs == 0:
            value: Any = not (option_string or "").startswith("--no-")
        else:
            value = _parsed(str(values))
        setattr(namespace, _DEST, {**getattr(namespace, _DEST, {}), name: value})


def add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all of them but those whose name a flag of pagewire has."""
    own = {option.name for option in MODEL_OPTIONS}
    for name in (*ENGINE_ARGUMENTS, *_RENAMED, *_WITHOUT_EFFECT, *_REFUSED):
        if name in own:
            continue
        flag = name.replace("_", "-")
        is_switch = name in FLAGS or name in _SWITCHES
        words = [f"--{flag}", f"--no-{flag}"] if is_switch else [f"--{flag}"]
        parser.add_argument(
            *words,
            dest=f"{_DEST}.{name}",
            action=_Take,
            nargs=0 if is_switch else None,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def vllm_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of ServeConfig that the flags set, and notes those without effect on standard error.

    Raises:
        InvalidRequest: a flag asks for what is not served.
    """
    given: dict[str, Any] = dict(getattr(args, _DEST, {}))
    for name, why in _REFUSED.items():
        if given.pop(name, False) is not False:
            raise InvalidRequest.of_field(f"--{name.replace('_', '-')}", f"is not taken: {why}")
    fields = {field: given.pop(name) for name, field in _RENAMED.items() if name in given}
    if "http_cors_origins" in fields:
        fields["http_cors_origins"] = tuple(fields["http_cors_origins"])
    unused = [*without_effect(given), *(name for name in _WITHOUT_EFFECT if given.pop(name, None) is not None)]
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        print(f"pagewire: without effect here: {flags}", file=sys.stderr)
    return fields | _fields_of(translate(given))


def _fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {option.name: option for option in MODEL_OPTIONS}
    fields = {}
    for name, value in options.items():
        option = by_name[name]
        option.words(value)  # Refuses what the option does not take.
        fields[option.dest or name] = value if option.type is bool else option.type(str(value))
    return fields


def _parsed(text: str) -> Any:
    """A number, a list or an object as JSON has it; other text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
