"""pagewire: the Python client of the pagewire LLM serving system.

    from pagewire import LLM, SamplingParams

    llm = LLM(model="path/or/hub-id")
    for output in llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8)):
        print(output.prompt, output.outputs[0].text)

LLM starts a server of its own; Client and AsyncClient talk to one that runs. Names are imported on first use, so that
`import pagewire` and `import pagewire.v1` load neither grpc nor protobuf.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagewire.assembly import RequestOutputKind
    from pagewire.async_client import AsyncClient
    from pagewire.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from pagewire.client import Client
    from pagewire.engine_args import EngineArgs
    from pagewire.engines import AsyncLLM, LLMEngine
    from pagewire.errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        DeadlineExceeded,
        FieldViolation,
        InvalidRequest,
        NotFound,
        PagewireError,
        QueueFull,
        ServerError,
        StartupError,
        Unauthenticated,
        Unavailable,
    )
    from pagewire.events import Event, PromptLogprobs, SequenceFinished, Started, TokenDelta
    from pagewire.llm import LLM
    from pagewire.outputs import CompletionOutput, Logprob, RequestOutput, Usage
    from pagewire.prompts import ChatPrompt, TextPrompt, TokensPrompt
    from pagewire.sampling_params import SamplingParams
    from pagewire.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

_EXPORTS = {
    "pagewire.assembly": ("RequestOutputKind",),
    "pagewire.async_client": ("AsyncClient",),
    "pagewire.beam_search": ("BeamSearchOutput", "BeamSearchParams", "BeamSearchSequence"),
    "pagewire.client": ("Client",),
    "pagewire.engine_args": ("EngineArgs",),
    "pagewire.engines": ("AsyncLLM", "LLMEngine"),
    "pagewire.errors": (
        "Aborted",
        "AlreadyExists",
        "Cancelled",
        "DeadlineExceeded",
        "FieldViolation",
        "InvalidRequest",
        "NotFound",
        "PagewireError",
        "QueueFull",
        "ServerError",
        "StartupError",
        "Unauthenticated",
        "Unavailable",
    ),
    "pagewire.events": ("Event", "PromptLogprobs", "SequenceFinished", "Started", "TokenDelta"),
    "pagewire.llm": ("LLM",),
    "pagewire.outputs": ("CompletionOutput", "Logprob", "RequestOutput", "Usage"),
    "pagewire.prompts": ("ChatPrompt", "TextPrompt", "TokensPrompt"),
    "pagewire.sampling_params": ("SamplingParams",),
    "pagewire.structured_outputs": ("StructuredOutputsParams",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "LLM",
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "Cancelled",
    "ChatPrompt",
    "Client",
    "CompletionOutput",
    "DeadlineExceeded",
    "EngineArgs",
    "Event",
    "FieldViolation",
    "InvalidRequest",
    "LLMEngine",
    "Logprob",
    "NotFound",
    "PagewireError",
    "PromptLogprobs",
    "QueueFull",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SequenceFinished",
    "ServerError",
    "Started",
    "StartupError",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokenDelta",
    "TokensPrompt",
    "Unauthenticated",
    "Unavailable",
    "Usage",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'pagewire' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
