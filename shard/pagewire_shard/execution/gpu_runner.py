"""Runs batches on a GPU: as CUDA graphs, or operation after operation, and never with a wait.

The host is ahead of the device all the time: what it sends goes through pinned memory, what comes back is copied on a
stream of its own and marked by an event, and step k + 1 is launched while step k runs.
"""

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.graph_capture import Capturer, CudaCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import Downlink, Uplink
from pagewire_shard.execution.model_runner import ModelRunner, StepOutput
from pagewire_shard.execution.pinned_transfer import PinnedDownlink, PinnedUplink
from pagewire_shard.execution.step_graphs import StepGraphs
from pagewire_shard.layers.forward_batch import KVCache
from pagewire_shard.models.decoder import Decoder


class GraphRunner(ModelRunner):
    """A ModelRunner whose steps have been captured. It runs those that no graph holds as its base class does."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        kv_caches: list[KVCache],
        block_size: int,
        uplink: Uplink,
        downlink: Downlink,
        capturer: Capturer,
        sizes: GraphSizes,
    ) -> None:
        """Captures steps of these sizes."""
        super().__init__(model, state, kv_caches, block_size, uplink, downlink)
        self.graphs = StepGraphs(model, state, self.sampler, kv_caches, block_size, sizes)
        self.graphs.capture(capturer)

    def _run(self, batch: RunBatch) -> StepOutput:
        if self.graphs.holds(batch):
            return self.graphs.run(batch, self.uplink, self.downlink)
        return super()._run(batch)


def gpu_runner(
    model: Decoder, state: DeviceState, kv_caches: list[KVCache], block_size: int, sizes: GraphSizes | None
) -> ModelRunner:
    """The runner for a CUDA device, which must be the current one.

    Args:
        sizes: Steps to capture; None: every step is run operation after operation.
    """
    uplink, downlink = PinnedUplink(state.device), PinnedDownlink(state.num_slots)
    if sizes is None:
        return ModelRunner(model, state, kv_caches, block_size, uplink, downlink)
    return GraphRunner(model, state, kv_caches, block_size, uplink, downlink, CudaCapturer(), sizes)
