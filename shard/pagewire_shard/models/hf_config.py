"""Reads a Hugging Face model directory's config.json and generation_config.json.

Only ConfigFields reads the raw JSON; every error it raises names the file and the field. The family files in models/
turn the fields into a decoder's spec, and hold the defaults of absent fields.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pagewire_shard.errors import ModelError, ModelNotFound, UnsupportedArchitecture

logger = logging.getLogger(__name__)

UNQUANTIZED = "weights in float32, float16 or bfloat16, such as those of the model that was quantized"

MAX_INTEGER = 2**31 - 1
"""Largest accepted size; larger ones would overflow index arithmetic."""


class ConfigFields:
    """Typed access to a configuration's fields.

    As in transformers, an absent field has the default of its configuration class. A null field has the value that the
    class replaces null by, which callers pass as `default`.
    """

    def __init__(self, path: Path, values: Mapping[str, object], defaults: Mapping[str, object] | None = None) -> None:
        self.path = path
        self._values = values
        self._defaults = defaults or {}

    def completed(self, defaults: Mapping[str, object], aliases: Mapping[str, str]) -> "ConfigFields":
        """The same fields with a configuration class's defaults.

        Args:
            aliases: alias -> name of a field. If a configuration has both, the alias is used, as in transformers.
        """
        renamed = {name: self._values[alias] for alias, name in aliases.items() if alias in self._values}
        return ConfigFields(self.path, {**self._values, **renamed}, defaults)

    def with_section(self, name: str) -> "ConfigFields":
        """The same fields and those of a nested object, which count where both have one."""
        return ConfigFields(self.path, {**self._values, **self.section(name)._values}, self._defaults)

    def with_default(self, name: str, value: object) -> "ConfigFields":
        """The same fields with `value` for an absent field."""
        return ConfigFields(self.path, self._values, {**self._defaults, name: value})

    def item(self, name: str, index: int) -> "ConfigFields":
        """The same fields with the index-th entry of a list in place of the list; as they are if it is none."""
        value = self.raw(name)
        if not isinstance(value, list):
            return self
        if index >= len(value):
            raise self.malformed(name, f"must have an entry for each layer, at least {index + 1}")
        return ConfigFields(self.path, {**self._values, name: value[index]}, self._defaults)

    def replaced(self, values: Mapping[str, Any]) -> "ConfigFields":
        """The fields with others in their places; objects are merged."""
        return ConfigFields(self.path, _merged(self._values, values)) if values else self

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def raw(self, name: str) -> object:
        """The field's value, or its default where it is absent; None if it is null or has no default."""
        return self._values[name] if name in self._values else self._defaults.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; required without a default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_INTEGER:
            raise self.malformed(name, f"must be a positive integer, at most {MAX_INTEGER}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """An integer that may be zero; required without a default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
            raise self.malformed(name, f"must be an integer from 0 to {MAX_INTEGER}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; required without a default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.malformed(name, "must be a finite number")
        return float(value)

    def positive_number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0; required without a default."""
        value = self.number(name, default)
        if value <= 0:
            raise self.malformed(name, "must be above 0")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A boolean; required without a default."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.malformed(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; required without a default."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.malformed(name, "must be a string")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, None if absent."""
        if name not in self:
            return None
        value = self.raw(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.malformed(name, "must be a list of strings")
        return tuple(cast("list[str]", value))

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them, empty if absent or null. They may be negative or beyond the vocabulary."""
        value = self.raw(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise self.malformed(name, "must be a token id or a list of token ids")
        return tuple(dict.fromkeys(cast("list[int]", items)))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, empty if absent."""
        value = self.raw(name)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
            raise self.malformed(name, "must be a list of integers")
        return tuple(cast("list[int]", items))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers, empty if absent."""
        value = self.raw(name)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(i, int | float) and math.isfinite(i) for i in items):
            raise self.malformed(name, "must be a list of finite numbers")
        return tuple(float(item) for item in items)

    def section(self, name: str) -> "ConfigFields":
        """A nested object, empty if absent."""
        value = self.raw(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.malformed(name, "must be an object")
        return ConfigFields(self.path, cast("dict[str, object]", value))

    def malformed(self, name: str, rule: str) -> ModelError:
        """The error for a field that breaks `rule`."""
        given = f"is {self.raw(name)!r}" if name in self else "is null" if name in self._values else "is missing"
        return ModelError(f"{self.path}: field {name!r} {given}; it {rule}")

    def unsupported(self, name: str, accepted: str) -> UnsupportedArchitecture:
        """The error for a field that asks for something the decoder does not implement."""
        return UnsupportedArchitecture(
            f"{self.path}: field {name!r} is {self.raw(name)!r}, which is not supported; supported: {accepted}"
        )

    def _value(self, name: str, default: object) -> object:
        value = self.raw(name)
        return default if value is None else value


def _merged(values: Mapping[str, object], others: Mapping[str, Any]) -> dict[str, object]:
    merged = dict(values)
    for name, other in others.items():
        value = merged.get(name)
        merged[name] = _merged(value, other) if isinstance(value, dict) and isinstance(other, dict) else other
    return merged


@dataclass(frozen=True, slots=True)
class HFConfig:
    """The parts of a model's configuration that are not specific to its family."""

    architecture: str
    """The first supported one of `architectures`; if there are none, the one of model_type."""
    vocab_size: int
    checkpoint_dtype: str | None
    """The weights' element type as config.json states it, such as "bfloat16"."""
    eos_token_ids: tuple[int, ...]
    """From generation_config.json if it names any token of the vocabulary, else from config.json."""
    fields: ConfigFields
    """All of config.json, with its family's defaults."""


def read_config_fields(model_dir: Path) -> ConfigFields:
    """The fields of config.json in `model_dir`.

    Raises:
        ModelNotFound: the directory or its config.json does not exist.
        ModelError: the file is not a JSON object.
    """
    path = model_dir / "config.json"
    if not path.is_file():
        reason = "has no config.json" if model_dir.is_dir() else "does not exist"
        raise ModelNotFound(f"model directory {model_dir} {reason}")
    return _read_json(path)


def describe(model_dir: Path, architecture: str, fields: ConfigFields, quantizations: Sequence[str] = ()) -> HFConfig:
    """Reads what config.json and generation_config.json state.

    Args:
        fields: the fields of config.json, completed with the family's defaults.
        quantizations: methods whose weights can be read.

    Raises:
        ModelError: a field is missing or malformed.
        UnsupportedArchitecture: the weights are quantized in a way that is not supported.
    """
    _check_quantization(fields, quantizations)
    vocab_size = fields.integer("vocab_size")
    return HFConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        checkpoint_dtype=_checkpoint_dtype(fields),
        eos_token_ids=_eos_token_ids(model_dir, fields, vocab_size),
        fields=fields,
    )


def _read_json(path: Path) -> ConfigFields:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return ConfigFields(path, values)


def _check_quantization(fields: ConfigFields, readable: Sequence[str]) -> None:
    """Raises UnsupportedArchitecture naming the method that the weights are quantized with, if they cannot be read."""
    for name in ("quantization_config", "compression_config"):
        method = fields.section(name).raw("quant_method") if name in fields else None
        if name in fields and method not in readable:
            raise UnsupportedArchitecture(
                f"{fields.path}: field {name!r} says that the weights are quantized with {method or 'some method'}, "
                f"which is not supported; supported: {UNQUANTIZED}"
            )


def _checkpoint_dtype(fields: ConfigFields) -> str | None:
    # transformers 5 writes dtype, transformers 4 wrote torch_dtype.
    for name in ("dtype", "torch_dtype"):
        if name in fields:
            return fields.text(name).removeprefix("torch.")
    return None


def _eos_token_ids(model_dir: Path, fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    """Ids outside the vocabulary, such as -1 for "none", are left out with a warning."""
    path = model_dir / "generation_config.json"
    for source in (_read_json(path), fields) if path.is_file() else (fields,):
        token_ids = source.token_ids("eos_token_id")
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                message = "%s: field 'eos_token_id' names %d, which is ignored: the vocabulary has %d tokens"
                logger.warning(message, source.path, token_id, vocab_size)
        if usable := tuple(token_id for token_id in token_ids if 0 <= token_id < vocab_size):
            return usable
    return ()
