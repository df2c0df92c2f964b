"""The gRPC service pagewire.v1.Shard: answers while the model still loads, and passes plan streams on once it has."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from pagewire.v1 import shard_pb2
from pagewire_common.rpc_status import AbortableContext

from pagewire_shard.errors import ModelError, ShardUnavailable
from pagewire_shard.service.execute_service import ExecuteService
from pagewire_shard.service.model_files import chunk_messages
from pagewire_shard.service.plan_stream import RawContext
from pagewire_shard.service.rpc_status import abort

SERVICE_NAME = "pagewire.v1.Shard"


class ShardService:
    """The three methods. `model_files` may still be on its way: a router can fetch them while weights load."""

    def __init__(self, model_files: "asyncio.Future[dict[str, bytes]]") -> None:
        self._model_files = model_files
        self._execute_service: ExecuteService | None = None
        self._info: shard_pb2.ShardInfo | None = None

    def open(self, execute_service: ExecuteService, info: shard_pb2.ShardInfo) -> None:
        """The engine is built: plan streams are welcome."""
        self._execute_service = execute_service
        self._info = info

    async def execute(self, request_iterator: object, context: RawContext) -> None:
        """Execute, with messages as bytes."""
        if self._execute_service is None:
            await abort(context, ShardUnavailable("the shard loads its model"))
        await self._execute_service.execute(request_iterator, context)

    async def get_info(self, _request: shard_pb2.GetInfoRequest, context: AbortableContext) -> shard_pb2.ShardInfo:
        """GetInfo."""
        if self._info is None or self._execute_service is None:
            await abort(context, ShardUnavailable("the shard loads its model"))
        info = shard_pb2.ShardInfo()
        info.CopyFrom(self._info)
        self._execute_service.describe_lease(info)
        return info

    async def get_model_files(
        self, _request: shard_pb2.GetModelFilesRequest, context: AbortableContext
    ) -> AsyncIterator[shard_pb2.ModelFileChunk]:
        """GetModelFiles."""
        try:
            files = await asyncio.shield(self._model_files)
        except ModelError as error:
            await abort(context, error)
        for chunk in chunk_messages(files):
            yield chunk

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns the handler for a grpc.aio server. Execute moves bytes: results are serialized where made."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Execute": grpc.stream_stream_rpc_method_handler(self.execute),
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                self.get_info,
                shard_pb2.GetInfoRequest.FromString,
                shard_pb2.ShardInfo.SerializeToString,
            ),
            "GetModelFiles": grpc.unary_stream_rpc_method_handler(
                self.get_model_files,
                shard_pb2.GetModelFilesRequest.FromString,
                shard_pb2.ModelFileChunk.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)
