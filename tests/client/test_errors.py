import asyncio

import pagewire
import pytest
from pagewire import (
    Aborted,
    AlreadyExists,
    AsyncClient,
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PagewireError,
    QueueFull,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from pagewire.retry import NEVER


@pytest.fixture
async def client(fake):
    async with AsyncClient(fake.target, retry=NEVER) as client:
        yield client


async def failure(fake, client, *args, **kwargs) -> PagewireError:
    async def fail(request, context):
        await fake.refuse(context, *args, **kwargs)

    async def fail_stream(request, context):
        await fake.refuse(context, *args, **kwargs)
        yield

    fake.complete, fake.generate = fail, fail_stream
    with pytest.raises(PagewireError) as of_stream:
        async for _ in client.generate("x"):
            pass
    with pytest.raises(PagewireError) as of_call:
        await client.complete("x")
    assert type(of_stream.value) is type(of_call.value)
    assert str(of_stream.value) == str(of_call.value)
    assert of_call.value.__cause__ is not None
    return of_call.value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("ALREADY_EXISTS", AlreadyExists),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("UNAVAILABLE", Unavailable),
        ("ABORTED", Aborted),
        ("CANCELLED", Unavailable),
        ("UNAUTHENTICATED", Unauthenticated),
        ("PERMISSION_DENIED", Unauthenticated),
        ("INTERNAL", ServerError),
        ("UNKNOWN", ServerError),
        ("UNIMPLEMENTED", ServerError),
    ],
)
async def test_each_status_has_its_error(fake, client, code, kind):
    error = await failure(fake, client, code, "what went wrong", reason="SOME_REASON")
    assert type(error) is kind
    assert "what went wrong" in str(error)
    assert error.reason == "SOME_REASON"


async def test_violations_name_the_fields(fake, client):
    violations = [("sampling_params.top_p", "2 given"), ("sampling_params.n", "0 given")]
    error = await failure(fake, client, "INVALID_ARGUMENT", "bad", violations=violations)
    assert isinstance(error, ValueError)
    assert error.violations == tuple(FieldViolation(*violation) for violation in violations)


async def test_a_full_queue_says_when_to_come_back(fake, client):
    error = await failure(fake, client, "RESOURCE_EXHAUSTED", "full", retry_after_s=1.5)
    assert type(error) is QueueFull
    assert error.retry_after_s == 1.5


async def test_a_message_over_the_size_limit_is_an_invalid_request_not_a_full_queue(fake):
    async with AsyncClient(fake.target) as client:
        with pytest.raises(InvalidRequest, match="larger than"):
            await client.complete("x" * (5 << 20))
    async with AsyncClient(fake.target, max_message_bytes=1 << 16) as client:
        with pytest.raises(InvalidRequest, match="larger than"):
            await client.complete("x" * (1 << 17))


async def test_details_that_contradict_the_status_are_left_aside(fake, client):
    async def fail(request, context):
        await context.abort(
            __import__("grpc").StatusCode.NOT_FOUND, "no such model", (("grpc-status-details-bin", b"\xff\xff"),)
        )

    fake.complete = fail
    with pytest.raises(NotFound, match="no such model"):
        await client.complete("x")


async def test_nobody_answers_names_the_address(tmp_path):
    target = f"unix:{tmp_path}/none.sock"
    async with AsyncClient(target, retry=NEVER) as client:
        with pytest.raises(Unavailable, match=r"none\.sock"):
            await client.get_model()


async def test_closing_ends_open_requests(fake, client, eventually):
    async def hang(request, context):
        await asyncio.sleep(60)

    fake.complete = hang
    task = asyncio.create_task(client.complete("x"))
    await eventually(lambda: len(fake.requests) == 1)
    await client.close()
    with pytest.raises((asyncio.CancelledError, PagewireError)):
        await task


def test_every_error_is_exported_and_in_the_tree():
    errors = [value for name in pagewire.__all__ if isinstance(value := getattr(pagewire, name), type)]
    raised = {error for error in errors if issubclass(error, Exception)}
    assert len(raised) == 12
    assert all(issubclass(error, PagewireError) for error in raised)
