"""Logging of the process: its format, and what of gRPC's own records is left out."""

import logging

import grpc

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GRPC_LOGGER = "grpc._cython.cygrpc"


def set_up_logging(level: str) -> None:
    """Logs records of at least this level to standard error."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
    logging.getLogger(GRPC_LOGGER).addFilter(is_worth_logging)


def is_worth_logging(record: logging.LogRecord) -> bool:
    """False for an answer that came when its call was over: its deadline had passed or its client had gone.

    gRPC logs these with a traceback if they meet within a millisecond or two; earlier and later it says nothing.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.InternalError)
