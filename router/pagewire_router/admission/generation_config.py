"""The defaults of sampling parameters that a model's generation_config.json states."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from pagewire.parameter_table import BY_NAME, MAX_INT32, Kind
from pagewire.v1 import inference_pb2

_log = logging.getLogger(__name__)

GENERATION_CONFIG_FILE = "generation_config.json"
_PARAMETER_OF = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields that are read, as in vLLM, and the parameters that they are defaults of. End-of-sequence tokens come with the
model (Model.eos_token_ids)."""


def model_defaults(files: Mapping[str, bytes]) -> inference_pb2.SamplingParams:
    """The parameters for which a model has another default than the table. Values out of range are logged and ignored.

    Args:
        files: the model's files by name.
    """
    defaults = inference_pb2.SamplingParams()
    for name, value in _fields(files.get(GENERATION_CONFIG_FILE)).items():
        if name not in _PARAMETER_OF or value is None:
            continue
        parameter = BY_NAME[_PARAMETER_OF[name]]
        types = int if parameter.kind is Kind.INT else int | float
        assert parameter.accepted is not None
        if isinstance(value, bool) or not isinstance(value, types) or not parameter.accepted.holds(value):
            _log.warning(
                "The model's %s: %s is %r, which is ignored; accepted: %s",
                *(GENERATION_CONFIG_FILE, name, value, parameter.accepted),
            )
        elif value != parameter.default:
            setattr(defaults, parameter.name, min(value, MAX_INT32))
    return defaults


def served_digest(model_digest: bytes, defaults: inference_pb2.SamplingParams) -> bytes:
    """What identifies a served model: its shards' digest, and other defaults than the table's if there are any."""
    if not defaults.ListFields():
        return model_digest
    return hashlib.sha256(model_digest + defaults.SerializeToString(deterministic=True)).digest()


def _fields(data: bytes | None) -> dict[str, Any]:
    """The fields of the file; none if it is missing or is not a JSON object, which is logged."""
    if data is None:
        return {}
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        return fields
    _log.warning("The model's %s is no JSON object, and is ignored", GENERATION_CONFIG_FILE)
    return {}
