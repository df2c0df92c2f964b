"""What the router's log says of calls that end while they are answered."""

import asyncio
import logging
from collections.abc import Iterator

import grpc
import pytest
from pagewire_router.errors import DeadlineExceeded
from pagewire_router.process_log import GRPC_LOGGER, is_worth_logging
from pagewire_router.service.rpc_status import abort

MAX_CALLS = 3000


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


@pytest.fixture
def records() -> Iterator[Records]:
    logger, handler = logging.getLogger(GRPC_LOGGER), Records()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_an_answer_that_meets_the_deadline_is_not_logged(records: Records) -> None:
    """Calls are refused a little after their deadline, a bit later each time, until one meets it."""
    met = False

    def is_logged(record: logging.LogRecord) -> bool:
        nonlocal met
        met = met or not is_worth_logging(record)
        return is_worth_logging(record)

    async def refuse(delay_us: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(max(0.0, context.time_remaining()) + int(delay_us) / 1e6)
        await abort(context, DeadlineExceeded("too late"))

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Refuse": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    logger = logging.getLogger(GRPC_LOGGER)
    logger.addFilter(is_logged)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test/Refuse")
            for i in range(MAX_CALLS):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(b"%d" % (i * 37 % 4000), timeout=0.005)
                if met:
                    break
    finally:
        logger.removeFilter(is_logged)
        await server.stop(None)
    assert records.seen == []


def test_other_failures_of_grpc_are_logged(records: Records) -> None:
    logger = logging.getLogger(GRPC_LOGGER)
    logger.addFilter(is_worth_logging)
    try:
        raise ValueError("a bug")
    except ValueError:
        logger.exception("raised by a method")
    finally:
        logger.removeFilter(is_worth_logging)
    assert "ValueError: a bug" in records.seen[0]
