"""An OTLP endpoint that only stores what it receives, so that a benchmark measures the sender.

A process of its own: prints its port; answers each line on standard input with the number of spans since the last one.
"""

import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sink(grpc.GenericRpcHandler):
    """Takes exports as bytes; they are decoded when nothing is measured."""

    def __init__(self) -> None:
        self._received: list[bytes] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """See grpc.GenericRpcHandler."""
        return grpc.unary_unary_rpc_method_handler(self._export) if handler_call_details.method == EXPORT else None

    def take_num_spans(self) -> int:
        """Spans since the last call."""
        received, self._received = self._received, []
        requests = map(trace_service_pb2.ExportTraceServiceRequest.FromString, received)
        return sum(len(s.spans) for request in requests for r in request.resource_spans for s in r.scope_spans)

    def _export(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._received.append(request)
        return b""


def main() -> None:
    """Serves until standard input ends."""
    sink = Sink()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((sink,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    for _ in sys.stdin:
        print(sink.take_num_spans(), flush=True)
    server.stop(None)


if __name__ == "__main__":
    main()
