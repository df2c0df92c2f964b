"""The steps before the first request need no more blocks than there may be."""

from types import SimpleNamespace

import pytest
from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.execution.warm_up import warm_up


class RecordingRunner:
    """Keeps what it is given, and computes nothing."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.num_computed: list[int] = []
        self.scored: list[list[int]] = []

    def admit(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)

    def launch(self, batch: RunBatch) -> SimpleNamespace:
        self.num_computed.append(batch.sequences[0].num_computed_tokens)
        self.scored.append(batch.scored)
        return SimpleNamespace(wait=lambda: None)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 64])
def test_the_blocks_of_the_sequence_are_those_of_its_tokens(block_size: int) -> None:
    runner = RecordingRunner()
    warm_up(runner, block_size)
    assert {len(sequence.blocks) for sequence in runner.sequences} == {-(-max(runner.num_computed) // block_size)}
    assert block_size < 3 or all(sequence.blocks == [0] for sequence in runner.sequences)
    assert [0] in runner.scored
