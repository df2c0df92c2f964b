"""The facts that admission needs of a call which a front has received."""

from typing import NamedTuple

from pagewire_router.caller import Caller
from pagewire_router.timeline import TraceContext
from pagewire_router.tracing.call_trace import CallTrace


class Call(NamedTuple):
    """One call of a client, whatever brought it."""

    caller: Caller
    arrival_s: float
    """time.monotonic() of the arrival."""
    deadline_s: float | None = None
    """time.monotonic() after which the client takes no answer; None: the client has set no deadline."""
    trace_context: TraceContext | None = None
    """The span that the shards' spans belong to; None: the shards decide whether they trace the request."""
    trace: CallTrace | None = None
    """Collects what the call's spans are made of; None: the call is not traced."""
