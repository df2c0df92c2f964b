"""The batch of one forward pass: built by the model runner, read by the layers."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from pagewire_kernels.paged_attention import SharedPrefixes
from pagewire_kernels.prepare_inputs import PreparedInputs


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A packed batch of new tokens, sequence after sequence, followed by rows of padding if there are any.

    num_tokens counts all rows, num_seqs the sequences. Padding belongs to no sequence: its keys and values are not
    written, and its outputs are never read. All tensors are on the model's device.
    """

    input_ids: torch.Tensor
    """[num_tokens] int64."""
    positions: torch.Tensor
    """[num_tokens] int64: each token's place in its sequence."""
    slot_mapping: torch.Tensor
    """[num_tokens] int64: block_id * block_size + offset where the token's key and value go; -1: not written."""
    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32: where each sequence's new tokens start."""
    seq_lens: torch.Tensor
    """[num_seqs] int32: each sequence's length with its new tokens. 0: the sequence has stopped, its rows are void."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks] int32: block ids, in order; entries beyond a sequence's length are arbitrary."""
    max_query_len: int
    """Most new tokens of any sequence."""
    max_seq_len: int
    """Upper bound of seq_lens."""
    num_decodes: int = 0
    """The first num_decodes sequences have exactly one new token each."""
    row_counts: torch.Tensor | None = None
    """[2] int64: as AttentionInputs has them; None: every sequence has new tokens, and num_decodes counts."""
    shared: SharedPrefixes | None = None
    """What the decodes share, as AttentionInputs has it."""
    others: "tuple[ForwardBatch, ...]" = ()
    """The same batch for attention layers whose caches have other block tables: slot_mapping, block_tables and shared
    differ, and there are no state slots."""
    read_slots: torch.Tensor | None = None
    """[num_seqs] int32: the state slot that each sequence's recurrent state is in; -1: it begins, its state is zero.
    None: the model has no layers with recurrent state."""
    write_slots: torch.Tensor | None = None
    """[num_seqs] int32: the state slot for the state behind each sequence's new tokens. It is the one that is read, or
    one that no other sequence of the batch reads or writes: copy-on-write, forks and checkpoints are nothing but that.
    Padding reads and writes a scrap slot. Given if and only if read_slots is."""
    kept: torch.Tensor | None = None
    """[num_kept] int64: the tokens whose hidden states the pass yields; None: all. The last layer computes its mixer
    alone of the others."""
    layer_inputs: torch.Tensor | None = None
    """[num_tokens, num_layers, width], activations' dtype: what layers get beside the residual stream; the decoder adds
    it."""
    max_lens: torch.Tensor | None = None
    """[num_seqs] int64: the most tokens that each sequence may have; None: no rotary embedding depends on it."""
    rotary_rows: torch.Tensor | None = None
    """[num_tokens] int64: each token's row in tables of rotary embeddings, where that is not its position; the decoder
    adds it."""
    position_scale: torch.Tensor | None = None
    """[num_tokens, 1, 1], activations' dtype: factors of the queries; the decoder adds it."""

    @classmethod
    def of(
        cls,
        inputs: PreparedInputs,
        max_query_len: int,
        max_seq_len: int,
        num_decodes: int,
        row_counts: torch.Tensor | None = None,
        shared: SharedPrefixes | None = None,
        others: Items[PreparedInputs] = (),
        states: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_lens: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
    ) -> "ForwardBatch":
        """Combines what the device looked up with what the host knows.

        others: The same by each of the other block tables.
        states: The slots that are read and those that are written; None: the model has no recurrent state.
        """
        lens = (max_query_len, max_seq_len, num_decodes, row_counts)
        read_slots, write_slots = states or (None, None)
        return cls(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            query_start_loc=inputs.query_start_loc,
            seq_lens=inputs.seq_lens,
            block_tables=inputs.block_tables,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            num_decodes=num_decodes,
            row_counts=row_counts,
            shared=shared,
            others=tuple(cls.of(other, *lens) for other in others),
            read_slots=read_slots,
            write_slots=write_slots,
            max_lens=max_lens,
            kept=kept,
        )


def rotary_rows(batch: ForwardBatch, longest_short: int, num_positions: int) -> torch.Tensor:
    """[num_tokens] int64: rows of tables with two rows for each position, the second half for long sequences.

    A sequence is long from its first token on if it may come to compute more than longest_short tokens; the last one
    that it may sample is not computed. So its keys are rotated alike however long it is when they are cached.
    """
    assert batch.max_lens is not None, "the runner gives them where they matter"
    offsets = (batch.max_lens - 1 > longest_short) * num_positions
    tokens = torch.arange(len(batch.positions), device=batch.positions.device)
    sequences = torch.searchsorted(batch.query_start_loc[1:], tokens, right=True)
    return batch.positions + offsets[sequences.clamp_(max=len(offsets) - 1)]


KVCache = tuple[torch.Tensor, ...]
"""One layer's cache, as its CacheSpec and StateSpec allocate it: of attention, keys and values in the layout of the
backend; of a recurrent layer, the tensors of its state by state slot."""
