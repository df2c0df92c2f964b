"""Stands in for `pagewire serve`: answers every prompt with its own words, and ends when standard input does.

A model named "broken" does not start; one named "slow" takes a while.
"""

import os
import sys
import threading
import time
from concurrent import futures

import grpc
from pagewire.serve.sockets import private_directory
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import inference_pb2_grpc


class Echo(inference_pb2_grpc.InferenceServicer):
    def GetModel(self, request, context):  # noqa: N802
        return pb.Model(name=" ".join(sys.argv[1:]), max_queued_requests=8, supports_chat=True)

    def Complete(self, request, context):  # noqa: N802
        words = request.text.split() or [message.content for message in request.chat.messages]
        words = words or [str(token_id) for token_id in request.token_ids.ids]
        words = words[: request.sampling_params.max_tokens or 16]
        completion = pb.Completion(
            text="".join(f" {word}" for word in words),
            token_ids=range(len(words)),
            finished=pb.Finished(finish_reason=pb.FINISH_REASON_LENGTH),
        )
        return pb.GenerateResult(started=pb.Started(request_id="r"), completions=[completion])

    def Generate(self, request, context):  # noqa: N802
        if request.text == "fail":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked")
        yield pb.GenerateResponse(started=pb.Started(request_id=request.request_id, seed=5, prompt_token_ids=[1, 2]))
        words = (request.text or request.cache_salt).split()
        sequences = range(request.sampling_params.n or 1)
        for number, word in enumerate(words):
            for index in sequences:
                yield pb.GenerateResponse(delta=pb.Delta(index=index, text=f" {word}", token_ids=[number]))
        for index in sequences:
            finished = pb.Finished(index=index, finish_reason=pb.FINISH_REASON_STOP)
            yield pb.GenerateResponse(finished=finished)


def main() -> None:
    model = sys.argv[sys.argv.index("--") + 1]
    assert {"--private-socket", "--exit-with-parent"} <= set(sys.argv)
    if model == "broken":
        print("loading", file=sys.stderr)
        sys.exit("error: the model broken is no model")
    if model == "slow":
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        time.sleep(60)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServicer_to_server(Echo(), server)
    with private_directory() as directory:
        address = f"unix:{directory}/pagewire.sock"
        server.add_insecure_port(address)
        server.start()
        print(f"pagewire ready on {address}", flush=True)
        sys.stdin.read()
        server.stop(0)


main()
