"""Refuses a call before it reaches a service, with one of our errors."""

from collections.abc import Callable

import grpc

from pagewire_router.errors import RouterError
from pagewire_router.grpc_front.rpc_status import abort

Count = Callable[[str, RouterError], None]
"""Counts a refused call to a method, which is given as a path, such as /pagewire.v1.Inference/Complete."""


def refusing_handler(method: str, error: RouterError, count: Count) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """What a gRPC server calls in place of the method.

    A call that ends without an answer looks the same whether or not its answer is a stream. As if its requests were
    one, so that none of them is read (see reception.py).
    """

    async def refuse(_requests: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        count(method, error)
        await abort(context, error)

    return grpc.stream_unary_rpc_method_handler(refuse)
