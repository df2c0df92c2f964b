"""What every step of a shard group runs: pure, synchronous, without a clock of its own."""
