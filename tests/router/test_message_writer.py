"""The writer of one call's messages, over a call whose flow control is the test's."""

import asyncio

import pytest
from pagewire_router.grpc_front.message_writer import MessageWriter
from pagewire_router.grpc_front.response_encoding import encode_responses
from pagewire_router.output.sequence_output import Delta


class Call:
    """Takes messages one at a time, each when the test lets it."""

    def __init__(self):
        self.begun, self.taken, self.error, self._future = [], [], None, None

    async def write(self, message):
        if self.error is not None:
            raise self.error
        self.begun.append(message)
        self._future = asyncio.get_running_loop().create_future()
        await self._future
        self.taken.append(message)

    def take(self):
        self._future.set_result(None)

    def fail(self, error):
        self._future.set_exception(error)


async def turns(number=3):
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def call():
    return Call()


@pytest.fixture
def writer(call):
    return MessageWriter(call)


async def test_a_message_is_begun_at_once_and_looked_at_when_the_next_is_due(call, writer):
    for number in range(3):
        assert writer.is_idle()
        outputs = [Delta(0, f"word {number}", [number], [])]
        writer.write(outputs)
        assert call.begun[number:] == encode_responses(outputs)
        assert not writer.is_idle()
        call.take()
        await turns()
        assert len(call.taken) == number
    assert writer.is_idle()
    assert call.taken == call.begun


async def test_messages_follow_one_another_in_order(call, writer):
    writer.write_bytes([b"1", b"2"])
    writer.write_bytes([b"3"])
    for number in range(3):
        assert len(call.begun) == number + 1
        call.take()
        await turns()
    assert call.taken == [b"1", b"2", b"3"]
    assert writer.is_idle()


async def test_whoever_waits_is_called_once_when_all_messages_are_taken(call, writer):
    calls = []
    writer.write_bytes([b"1", b"2"])
    writer.when_idle(lambda: calls.append(list(call.taken)))
    writer.when_idle(lambda: calls.append(list(call.taken)))
    call.take()
    await turns()
    assert calls == []
    call.take()
    await turns()
    assert calls == [[b"1", b"2"]]


async def test_drain_waits_for_the_last_message(call, writer):
    writer.write_bytes([b"1", b"2"])
    draining = asyncio.create_task(writer.drain())
    for _ in range(2):
        await turns()
        assert not draining.done()
        call.take()
    await draining
    assert call.taken == [b"1", b"2"]


@pytest.mark.parametrize("look", [MessageWriter.is_idle, lambda writer: writer.write_bytes([b"3"])])
async def test_a_failed_write_is_raised_at_every_look(call, writer, look):
    told = []
    writer.write_bytes([b"1", b"2"])
    writer.when_idle(lambda: told.append(True))
    call.fail(ConnectionResetError("gone"))
    await turns()
    assert told == [True]
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            look(writer)
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    assert call.begun == [b"1"]


async def test_a_write_that_cannot_begin_is_raised(call, writer):
    call.error = ConnectionResetError("gone")
    with pytest.raises(ConnectionResetError):
        writer.write_bytes([b"1"])


async def test_a_closed_writer_begins_nothing_more(call, writer):
    told = []
    writer.write_bytes([b"1", b"2"])
    writer.when_idle(lambda: told.append(True))
    writer.close()
    await turns()
    assert call.begun == [b"1"]
    assert call.taken == told == []
