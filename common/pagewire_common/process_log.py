"""Logging of the process: its format, and what of gRPC's and asyncio's own records is left out.

Libraries that speak to clients put into their messages and tracebacks what clients send: header values, keys among
them. Of their records only the part that their source has is logged, in one line, and each kind once a minute.
"""

import logging
import re
import time
import traceback
from types import TracebackType

import grpc

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GRPC_LOGGER = "grpc._cython.cygrpc"
FOREIGN_LOGGERS = ("grpc", "asyncio", "concurrent", "h2", "hpack", "h11", "uvicorn")
"""Libraries whose records may hold what a client sent; with all loggers below them."""
NOISY_LOGGERS = ("numba",)
"""Libraries whose debug records are thousands of lines about their own work: warnings and errors alone are logged."""
PERIOD_S = 60.0
"""A kind of their records is logged once in so long, with the number of those left out since."""
MAX_KINDS = 100
"""Kinds that are told apart; all others together are one more."""
MAX_TEXT_CHARS = 200
VALUE_BEGINS = re.compile(r"""b?['"<\n]""")
"""Where a value begins in a message that was put together before it was logged: the rest may be a client's."""
ARGUMENT_BEGINS = re.compile(r"""b?['"<\n]|[:=(\[{]""")
"""The same in the messages of other libraries, which do not always quote."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up_logging(level: str) -> None:
    """Logs records of at least this level to standard error."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter(FORMAT))
        handler.addFilter(ForeignRecords())
    logging.getLogger(GRPC_LOGGER).addFilter(is_worth_logging)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def is_worth_logging(record: logging.LogRecord) -> bool:
    """False for an answer that came when its call was over: its deadline had passed or its client had gone.

    gRPC logs these with a traceback if they meet within a millisecond or two; earlier and later it says nothing.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.InternalError)


class ForeignRecords(logging.Filter):
    """Lets few records of each kind pass that are other libraries'."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[str, float] = {}
        self._num_left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for our own, and the first of a kind in a while. That one learns how many were left out since."""
        if not _is_foreign(record):
            return True
        kind, now = f"{record.name}:{_own_text(record)}", time.monotonic()
        if kind not in self._passed_s and len(self._passed_s) >= MAX_KINDS:
            kind = ""
        if now - self._passed_s.get(kind, now - PERIOD_S) < PERIOD_S:
            self._num_left_out[kind] = self._num_left_out.get(kind, 0) + 1
            return False
        self._passed_s[kind] = now
        record.num_left_out = self._num_left_out.pop(kind, 0)
        return True


class SafeFormatter(logging.Formatter):
    """Other libraries' records in one line that holds nothing of a client's, and tracebacks without values."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line or lines. Other handlers see the record as it was."""
        if not _is_foreign(record):
            return super().format(record)
        num_left_out = getattr(record, "num_left_out", 0)
        reduced = logging.makeLogRecord(record.__dict__)
        reduced.msg = _own_text(record) + (f" ({num_left_out} more since the last one)" if num_left_out else "")
        reduced.args = reduced.exc_info = reduced.exc_text = reduced.stack_info = None
        return super().format(reduced)

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802
        """Of each exception in the chain: its frames, its type, and its message up to the first value."""
        lines: list[str] = []
        error = ei[1]
        while error is not None and len(lines) < MAX_KINDS:
            own = [
                *traceback.format_tb(error.__traceback__),
                f"{type(error).__qualname__}: {_before(VALUE_BEGINS, str(error))}\n",
            ]
            lines[:0] = own
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "".join(["Traceback (most recent call last):\n", *lines]).rstrip()


def _is_foreign(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in FOREIGN_LOGGERS


def _own_text(record: logging.LogRecord) -> str:
    """What the library's source says, without values, and the type of the exception."""
    text = _before(VALUE_BEGINS if record.args else ARGUMENT_BEGINS, str(record.msg))
    kind = record.exc_info[0] if record.exc_info else None
    return f"{text} [{kind.__qualname__}]" if kind is not None else text


def _before(pattern: re.Pattern[str], text: str) -> str:
    text = text[:MAX_TEXT_CHARS]
    found = pattern.search(text)
    return text if found is None else f"{text[: found.start()]}..."
