"""Runs batches on a GPU: decode steps as CUDA graphs, all others operation after operation, none with a wait.

The host is ahead of the device all the time: what it sends goes through pinned memory, what comes back is copied on a
stream of its own and marked by an event, and step k + 1 is launched while step k runs.
"""

import torch

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.execution.decode_graphs import Capturer, CudaCapturer, DecodeGraphs
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.host_transfer import Downlink, Uplink
from pagewire_shard.execution.model_runner import ModelRunner, StepOutput
from pagewire_shard.execution.pinned_transfer import PinnedDownlink, PinnedUplink
from pagewire_shard.layers.forward_batch import KVCache
from pagewire_shard.models.decoder import Decoder


class GraphRunner(ModelRunner):
    """A ModelRunner whose decode steps have been captured."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        kv_caches: list[KVCache],
        block_size: int,
        uplink: Uplink,
        downlink: Downlink,
        capturer: Capturer,
        sizes: tuple[int, ...],
    ) -> None:
        """Captures decode steps of these batch sizes."""
        super().__init__(model, state, kv_caches, block_size, uplink, downlink)
        self._graphs = DecodeGraphs(model, state, self.sampler, kv_caches, block_size, max(sizes))
        self._graphs.capture(sizes, capturer)

    def _run(self, batch: RunBatch) -> StepOutput:
        if self._graphs.holds(batch):
            return self._graphs.run(batch, self.uplink, self.downlink)
        return super()._run(batch)


def gpu_runner(
    model: Decoder, state: DeviceState, kv_caches: list[KVCache], block_size: int, sizes: tuple[int, ...]
) -> ModelRunner:
    """The runner for a CUDA device, which must be the current one.

    Args:
        sizes: Batch sizes of decode steps to capture; none: every step is run operation after operation.
    """
    uplink, downlink = PinnedUplink(state.device), PinnedDownlink(state.num_slots)
    if not sizes:
        return ModelRunner(model, state, kv_caches, block_size, uplink, downlink)
    runner = GraphRunner(model, state, kv_caches, block_size, uplink, downlink, CudaCapturer(), sizes)
    # What the runs before each capture used belongs to the capturing stream and would never be used again.
    torch.cuda.empty_cache()
    return runner
