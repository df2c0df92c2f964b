"""A process's log: calls that end while they are answered, and no data of clients."""

import asyncio
import io
import logging
from collections.abc import Iterator

import grpc
import pytest
from pagewire_common.process_log import GRPC_LOGGER, is_worth_logging, set_up_logging

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
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")

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


SECRET = "SECRETKEY-1234567890"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a process writes that has set its logging up for debugging."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [logging.StreamHandler(stream)]
    root.setLevel(logging.DEBUG)
    set_up_logging("debug")
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("Invalid encoding on %s", (f"Bearer {SECRET}\xc3".encode("latin1"),)),
        (f"Invalid encoding on {f'Bearer {SECRET}'.encode()!r}", ()),
        (f"Task exception was never retrieved\nfuture: <Task exception=KeyError('{SECRET}')>", ()),
        (f"Exception in callback <Handle f('{SECRET}')>", ()),
        (f"it's {SECRET!r} and an unfinished '{SECRET}", ()),
    ],
)
@pytest.mark.parametrize("logger", ["grpc._cython.cygrpc", "grpc.aio._server", "asyncio"])
def test_what_a_client_sent_is_in_no_line_of_another_library(
    lines: io.StringIO, logger: str, message: str, args: tuple[object, ...]
) -> None:
    try:
        raise UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET) from KeyError(SECRET)
    except UnicodeDecodeError:
        logging.getLogger(logger).exception(message, *args)
    logging.getLogger(logger).debug(message, *args)
    assert SECRET not in lines.getvalue()
    assert len(lines.getvalue().splitlines()) == 2
    assert "UnicodeDecodeError" in lines.getvalue(), "what kind of failure it was is said"


def test_a_kind_of_another_library_is_logged_once_a_minute(lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("pagewire_common.process_log.time.monotonic", lambda: now)
    for _ in range(500):
        logging.getLogger(GRPC_LOGGER).error("Invalid encoding on %s", b"x")
    logging.getLogger("asyncio").error("another kind")
    assert len(lines.getvalue().splitlines()) == 2
    now += 61.0
    logging.getLogger(GRPC_LOGGER).error("Invalid encoding on %s", b"x")
    assert lines.getvalue().splitlines()[-1].endswith("(499 more since the last one)")
    for i in range(5000):
        logging.getLogger(GRPC_LOGGER).error(f"message {i}")
    assert len(lines.getvalue().splitlines()) < 200


def test_a_compilers_work_is_not_logged_and_its_warnings_are(lines: io.StringIO) -> None:
    logging.getLogger("numba.core.byteflow").debug("bytecode dump")
    logging.getLogger("numba.core").warning("slow loop")
    assert lines.getvalue().endswith("WARNING numba.core: slow loop\n")
    assert "dump" not in lines.getvalue()


def test_our_own_tracebacks_show_frames_and_no_values(lines: io.StringIO) -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"{SECRET!r} is wrong") from error
    except ValueError:
        logging.getLogger("pagewire_router.x").exception("A call failed")
    assert SECRET not in lines.getvalue().replace("{SECRET!r}", "")
    assert "KeyError: ..." in lines.getvalue()
    assert "ValueError: ..." in lines.getvalue()
    assert "test_process_log.py" in lines.getvalue()
