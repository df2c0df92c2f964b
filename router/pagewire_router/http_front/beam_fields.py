"""Beam search over HTTP, with vLLM's fields: use_beam_search, n for the width, length_penalty."""

from collections.abc import Mapping
from typing import Any

from pagewire.v1 import inference_pb2

from pagewire_router.http_front.errors import wrong
from pagewire_router.http_front.fields import BOOLEAN, NUMBER, Field, FieldTable, choice_of, one_of

BEAM_FIELDS = (
    Field("use_beam_search", BOOLEAN, "Searches for the n most probable outputs; the answer is not streamed."),
    Field("length_penalty", NUMBER, "Of a beam search: exponent of the length that log-probabilities are divided by."),
    Field(
        "early_stopping",
        one_of(BOOLEAN, choice_of("never")),
        "Of a beam search: when to stop before max_tokens, as transformers' early_stopping says it.",
    ),
)
_EARLY_STOPPING = {
    False: inference_pb2.EARLY_STOPPING_FALSE,
    True: inference_pb2.EARLY_STOPPING_TRUE,
    "never": inference_pb2.EARLY_STOPPING_NEVER,
}
_SHARED = frozenset(field.name for field in inference_pb2.BeamSearchParams.DESCRIPTOR.fields)
_UNUSED = frozenset(("temperature", "top_p", "top_k", "min_p", "seed"))
"""Parameters of random sampling. Clients send them with every request, and a search does not sample."""


def search_beams(values: Mapping[str, Any], table: FieldTable, message: inference_pb2.GenerateRequest) -> None:
    """Turns a request whose sampling parameters are set into a beam search, if the fields ask for one.

    Raises HttpError.
    """
    if not values.get("use_beam_search"):
        for name in ("length_penalty", "early_stopping"):
            if values.get(name) not in (None, False, 1.0):
                raise wrong(name, "is given without use_beam_search")
        return
    if values.get("stream"):
        raise wrong("stream", "is given with use_beam_search: what a search finds is known at its end")
    params = inference_pb2.SamplingParams()
    params.CopyFrom(message.sampling_params)
    beams = inference_pb2.BeamSearchParams(beam_width=params.n if params.HasField("n") else 1, max_tokens=16)
    for descriptor, value in params.ListFields():
        name = descriptor.name
        if name in _SHARED and name != "n":
            if name == "structured_outputs":
                beams.structured_outputs.CopyFrom(value)
            elif name == "stop_token_ids":
                beams.stop_token_ids.extend(value)
            else:
                setattr(beams, name, value)
        elif name not in _UNUSED and name != "n":
            raise wrong(table.name_of(name) or name, "is not served with use_beam_search")
    if "length_penalty" in values:
        beams.length_penalty = values["length_penalty"]
    beams.early_stopping = _EARLY_STOPPING[values.get("early_stopping", False)]
    message.beam_search_params.CopyFrom(beams)
