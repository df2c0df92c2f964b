"""What a stage of a pipeline passes on to the next one."""

from dataclasses import dataclass

import torch

from pagewire_shard.layers.block import Stream


@dataclass(frozen=True, slots=True)
class HandoverSpec:
    """The residual stream, and what the layers of later stages get beside it, side by side in one message."""

    hidden_size: int
    has_residual: bool
    """The last layer's output comes apart from the residual stream. Adding the two before would round the sum."""
    layer_inputs: tuple[int, int] | None = None
    """[num_layers, width] of the later layers' inputs of a token; None: they get none."""

    @property
    def width(self) -> int:
        """Elements for each token."""
        num_layers, width = self.layer_inputs or (0, 0)
        return self.hidden_size * (1 + self.has_residual) + num_layers * width

    def pack(self, stream: Stream, layer_inputs: torch.Tensor | None) -> torch.Tensor:
        """[num_tokens, width], contiguous: the message, whose first rows are the message of the first tokens.

        Args:
            layer_inputs: [num_tokens, num_layers, width] of the layers of this stage and those after it.
        """
        x, residual = stream
        assert (residual is not None) == self.has_residual
        parts = [x] if residual is None else [x, residual]
        if self.layer_inputs is not None:
            assert layer_inputs is not None
            parts.append(layer_inputs[:, layer_inputs.shape[1] - self.layer_inputs[0] :].flatten(1))
        return x.contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpack(self, message: torch.Tensor) -> tuple[Stream, torch.Tensor | None]:
        """The residual stream and the layers' inputs, all contiguous, of a message as pack returns it."""
        num_layers, width = self.layer_inputs or (0, 0)
        sizes = [self.hidden_size] * (1 + self.has_residual) + [num_layers * width]
        *streams, inputs = torch.split(message, sizes, dim=1)
        x, *rest = (part.contiguous() for part in streams)
        layer_inputs = None if self.layer_inputs is None else inputs.reshape(-1, num_layers, width)
        return (x, rest[0] if rest else None), layer_inputs
