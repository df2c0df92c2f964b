"""Checks of structured_outputs that need no vocabulary, and the name by which shards prepare them.

Whether a schema or a grammar is supported is for the shards to say, which answer the Prepare.
"""

import hashlib

from pagewire.v1 import inference_pb2

from pagewire_router.admission.validation import Limits, Violations

MAX_BYTES = 1 << 19
"""Most bytes of a request's structured_outputs."""
CONSTRAINTS = tuple(
    field.name for field in inference_pb2.StructuredOutputs.DESCRIPTOR.oneofs_by_name["constraint"].fields
)
"""Names of the constraints, of which exactly one is set."""


def check_structured_outputs(
    given: inference_pb2.StructuredOutputs, limits: Limits, violations: Violations, name: str
) -> None:
    """Adds violations. name: the path of the field within GenerateRequest."""
    if not limits.serves_grammars:
        violations.add(name, "is not served: the model has no tokenizer that grammars can be served with")
        return
    constraint = given.WhichOneof("constraint")
    if constraint is None:
        violations.add(name, f"holds no constraint; accepted: one of {', '.join(CONSTRAINTS)}")
    elif constraint == "json_object" and not given.json_object:
        violations.add(f"{name}.json_object", "is false; accepted: true, or no structured_outputs")
    elif constraint == "choice" and not (given.choice.options and all(given.choice.options)):
        violations.add(f"{name}.choice", "accepted: at least one option, none of them empty")
    elif constraint not in ("json_object", "choice") and not getattr(given, constraint):
        violations.add(f"{name}.{constraint}", "is empty")
    if given.HasField("reasoning_start") and not (given.reasoning_start and given.reasoning_end):
        violations.add(f"{name}.reasoning_start", "is empty, or is given without reasoning_end")
    num_bytes = given.ByteSize()
    if num_bytes > MAX_BYTES:
        violations.add(name, f"takes {num_bytes:,} bytes; accepted: up to {MAX_BYTES:,}")


def follow_prompt(given: inference_pb2.StructuredOutputs, prompt_end: str) -> None:
    """Settles by the end of the prompt whether reasoning has begun, has ended, or may still come."""
    prompt_end = prompt_end.rstrip()
    if prompt_end.endswith(given.reasoning_start.rstrip()):
        given.ClearField("reasoning_start")
    elif prompt_end.endswith(given.reasoning_end.rstrip()):
        given.ClearField("reasoning_start")
        given.ClearField("reasoning_end")


def grammar_name(outputs: inference_pb2.StructuredOutputs) -> str:
    """The same for the same content, whatever order its fields arrived in."""
    content = outputs.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
