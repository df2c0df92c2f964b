"""Logits processors: code of the operator that changes logits before a token is sampled. docs/logits-processors.md."""

from pagewire_shard.logits_processors.adapter import (
    AdapterLogitsProcessor,
    RequestLogitsProcessor,
    process_dict_updates,
)
from pagewire_shard.logits_processors.interface import (
    AddedRequest,
    BatchUpdate,
    LogitsProcessor,
    ModelConfig,
    MoveDirectionality,
    ProcessorConfig,
    RequestParams,
    SchedulerConfig,
)

__all__ = [
    "AdapterLogitsProcessor",
    "AddedRequest",
    "BatchUpdate",
    "LogitsProcessor",
    "ModelConfig",
    "MoveDirectionality",
    "ProcessorConfig",
    "RequestLogitsProcessor",
    "RequestParams",
    "SchedulerConfig",
    "process_dict_updates",
]
