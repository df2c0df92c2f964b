"""Reads a model's tokenizer and chat templates from the files that its shard sends."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagewire_common.model_files import SETTINGS_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER, TOKENIZER_FILE
from tokenizers import Tokenizer as Backend

Files = Mapping[str, bytes]
"""File contents by name."""


class TokenizerFilesError(Exception):
    """The model's tokenizer files are missing or malformed; the message names the file."""


def read_json(files: Files, name: str) -> dict[str, Any]:
    """A JSON object among the files; empty if there is no such file."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise TokenizerFilesError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerFilesError(f"{name} holds a JSON {type(value).__name__}; expected an object")
    return value


def tokenizer_config(files: Files) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json where the configuration lists no added tokens."""
    config = read_json(files, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(files, "special_tokens_map.json")
    return config


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """Settings of a tokenizer that tokenizer.json does not hold."""

    clean_up_tokenization_spaces: bool = False
    """Spaces before punctuation and contractions are removed from decoded text."""
    split_special_tokens: bool = False
    """Special tokens in a text are encoded as ordinary text."""


def tokenizer_settings(files: Files) -> TokenizerSettings:
    """The settings that the shard has read from the model's other files."""
    given = read_json(files, SETTINGS_FILE)
    return TokenizerSettings(**{name: given[name] for name in TokenizerSettings.__slots__ if name in given})


def build_backend(files: Files) -> Backend:
    """Loads the tokenizer. The shard turns every kind of tokenizer into tokenizer.json."""
    try:
        backend = Backend.from_str(files[TOKENIZER_FILE].decode())
    except Exception as error:  # The library raises bare Exception.
        raise TokenizerFilesError(f"{TOKENIZER_FILE} cannot be read: {error}") from None
    backend.encode_special_tokens = tokenizer_settings(files).split_special_tokens
    backend.no_padding()
    backend.no_truncation()
    return backend


def special_tokens(files: Files) -> dict[str, str]:
    """The text of the named special tokens, such as bos_token, as chat templates use them."""
    resolved = read_json(files, SETTINGS_FILE).get("special_tokens")
    if resolved is not None:
        return dict(resolved)
    config = tokenizer_config(files)
    extra = config.get("extra_special_tokens")
    # Templates may use further named tokens, such as image_token.
    candidates = config | (extra if isinstance(extra, dict) else {})
    names = [name for name in candidates if name.endswith("_token")]
    tokens = {name: text for name in names if (text := _token_text(candidates[name])) is not None}
    if isinstance(extra, dict):
        tokens |= {name: text for name, token in extra.items() if (text := _token_text(token)) is not None}
    return tokens


def chat_templates(files: Files) -> dict[str, str]:
    """The model's chat templates by name; a single one is called "default".

    Jinja files take the place of what the configuration says, as in transformers. chat_template.json is that of models
    with a processor, which has its template beside the tokenizer's. Raises TokenizerFilesError.
    """
    templates = {}
    if TEMPLATE_FILE in files:
        templates["default"] = _text(TEMPLATE_FILE, files[TEMPLATE_FILE])
    for path in sorted(files):
        if path.startswith(TEMPLATE_FOLDER) and path.endswith(".jinja"):
            templates[path.removeprefix(TEMPLATE_FOLDER).removesuffix(".jinja")] = _text(path, files[path])
    if templates:
        return templates
    for name, content in (
        ("tokenizer_config.json", tokenizer_config(files)),
        ("chat_template.json", read_json(files, "chat_template.json")),
    ):
        if content.get("chat_template"):
            return _named_templates(content["chat_template"], name)
    return {}


def _named_templates(value: Any, file: str) -> dict[str, str]:
    """Templates from a JSON file: one, or a list or an object of named ones."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    templates = value if isinstance(value, dict) else {"default": value}
    if not all(isinstance(template, str) for template in templates.values()):
        raise TokenizerFilesError(f"{file}: chat_template is neither a template nor a list of named ones")
    return templates


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise TokenizerFilesError(f"{name} is not UTF-8: {error}") from None


def _token_text(token: Any) -> str | None:
    """The text of a token, which is a string or an object with its content; None for null and for flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
