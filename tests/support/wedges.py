"""Logits processors that make a shard hang in one of its parts. A request asks for it with the argument `wedge`."""

import asyncio
import sys
import threading
import time
from typing import Any

import torch
from pagewire_shard.logits_processors import AdapterLogitsProcessor, RequestLogitsProcessor

FOR_S = 3600.0


class Wedge(AdapterLogitsProcessor):
    """step: the step thread hangs; loop: the event loop does; device: a kernel does not end, on a GPU."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> RequestLogitsProcessor | None:
        what = (params.extra_args or {}).get("wedge")
        return None if what is None else lambda output_ids, logits: wedge(what, logits)


def wedge(what: str, logits: torch.Tensor) -> torch.Tensor:
    if what == "step":
        time.sleep(FOR_S)
    elif what == "loop":
        loop_of_main_thread().call_soon_threadsafe(time.sleep, FOR_S)
    elif what == "device":
        for _ in range(20):
            torch.cuda._sleep(2_000_000_000)  # about a second each
    return logits


def loop_of_main_thread() -> asyncio.AbstractEventLoop:
    """The loop of the asyncio.Runner that the main thread is in."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None:
        if isinstance(runner := frame.f_locals.get("self"), asyncio.Runner):
            return runner.get_loop()
        frame = frame.f_back  # type: ignore[assignment]
    raise LookupError("the main thread runs no event loop")


class NotFinite(AdapterLogitsProcessor):
    """Leaves no finite logits for requests that ask for it with `not_finite`, behind so many tokens."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> RequestLogitsProcessor | None:
        after = (params.extra_args or {}).get("not_finite")
        if after is None:
            return None
        return lambda output_ids, logits: logits if len(output_ids) < after else torch.full_like(logits, float("nan"))
