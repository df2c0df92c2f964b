"""Fills a decoder's parameters from the tensors of a checkpoint.

Tensors are read one at a time into the parameter they are part of; a parameter that is complete is packed at once, so
that beside the packed weights about one parameter is in memory unpacked. A rank that shares the model with others reads
only what it holds of each tensor: files are mapped, and the rest of their pages is not touched.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from pagewire_shard.errors import CorruptWeights, UnsupportedArchitecture
from pagewire_shard.layers.parameter import Parameter, TensorSpec
from pagewire_shard.layers.rank_slice import RankSlice
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading.checkpoint import CheckpointFile, CheckpointTensor
from pagewire_shard.loading.mxfp4 import dequantized
from pagewire_shard.loading.sliced import SlicedParameter, copy_rows, sliced_parameters
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.hf_config import UNQUANTIZED
from pagewire_shard.models.names import NameMap, Target, is_needless
from pagewire_shard.parallel.stage import WHOLE, Stage

logger = logging.getLogger(__name__)

QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx"  # GPTQ, AWQ
    r"|weight_(scale|scale_inv|packed|shape|zero_point)|(input|output)_scale|[kv]_scale"  # FP8, compressed-tensors
    r"|SCB|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"  # bitsandbytes
    r"|\w+_(blocks|scales))$"  # MXFP4
)
"""Names of tensors that only quantized weights have, for checkpoints whose config.json does not tell."""


def read_weights(
    files: list[CheckpointFile],
    spec: DecoderSpec,
    names: NameMap,
    weights: Weights,
    *,
    stage: Stage = WHOLE,
    reads_mxfp4: bool = False,
) -> None:
    """Reads a checkpoint into `weights`, which are empty; of it what belongs to the rank of weights.collectives and to
    the stage.

    Every parameter must be filled by the checkpoint, and every tensor of it used or known to be needless.

    Args:
        spec: Of the whole decoder.
        reads_mxfp4: Experts may be stored in MXFP4, and are dequantized.

    Raises:
        CorruptWeights: the message names the tensor that is missing, has no place or does not fit.
    """
    reader = _Reader(spec, names, weights, stage)
    tensors: Iterator[CheckpointTensor] = chain.from_iterable(file.tensors() for file in files)
    if reads_mxfp4:
        tensors = dequantized(tensors, transposed=names.transposed_experts)
    for tensor in tensors:
        reader.add(tensor)
    reader.finish(files[0].path.parent)


class _Pending:
    """A parameter that is being filled."""

    def __init__(self, sliced: SlicedParameter, specs: Mapping[str, TensorSpec], device: torch.device) -> None:
        """specs: of the tensors that this rank holds."""
        self.slice: RankSlice = sliced.slice
        self.tensors = {name: torch.empty(spec.shape, dtype=spec.dtype, device=device) for name, spec in specs.items()}
        self._parts = range(len(sliced.whole.parts))
        self.missing = {(name, part) for name in specs for part in self._parts}
        """Tensor and part."""

    def fill(self, name: str, part: int | None, value: torch.Tensor, order: torch.Tensor | None) -> None:
        """Copies this rank's rows and columns of one part, or of the whole tensor."""
        place = self.tensors[name].narrow(0, *self.slice.place(part))
        if name == "bias" and not self.slice.has_bias:
            place.zero_()
        else:
            copy_rows(value, self.slice.runs(part), self.slice.columns, order, place)
        self.missing -= {(name, each) for each in self._parts} if part is None else {(name, part)}


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)


class _Reader:
    """Puts checkpoint tensors in their places."""

    def __init__(self, spec: DecoderSpec, names: NameMap, weights: Weights, stage: Stage) -> None:
        self._weights = weights
        self._names = names
        self._stage = stage
        own = spec.for_rank(weights.collectives.ranks).for_stage(stage)
        self._is_tied = spec.tied_embeddings
        self._lm_head = SlicedParameter.of(spec.lm_head, own.lm_head, own.ranks)
        self._elsewhere = spec.parameters().keys() - own.parameters().keys()
        """Parameters of other stages."""
        self._layers = spec.layers
        self._skipped: Counter[str] = Counter()
        """Number of tensors that are not loaded, by the beginning of their names."""
        self._parameters = sliced_parameters(spec, own)
        self._tied: dict[tuple[str, str], CheckpointTensor] = {}
        """By parameter and tensor: what the checkpoint stores of embeddings and output projection, if they are tied."""
        self._pending: dict[str, _Pending] = {}
        self._complete: set[str] = set()
        self._fill_unstored()

    def _fill_unstored(self) -> None:
        """Norms whose weights checkpoints do not have."""
        for name, sliced in self._parameters.items():
            if not sliced.own.is_stored:
                specs = self._weights.specs(sliced.own)
                device = self._weights.precision.device
                tensors = {key: torch.ones(spec.shape, dtype=spec.dtype, device=device) for key, spec in specs.items()}
                self._weights.put(name, sliced.own, tensors)
                self._complete.add(name)

    def add(self, tensor: CheckpointTensor) -> None:
        """Copies the tensor to its place, and packs the parameter if that completes it."""
        target = self._names.target(tensor.name)
        if target is not None and self._is_elsewhere(target):
            return
        spec = self._spec_of(target) if target else None
        if target is None or spec is None:
            if self._is_skipped(tensor.name):
                return
            if QUANTIZED.search(tensor.name):
                raise UnsupportedArchitecture(
                    f"{tensor.path}: tensor {tensor.name!r} is part of quantized weights, which is not supported; "
                    f"supported: {UNQUANTIZED}"
                )
            tensor.check_usable()
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} does not belong to the model config.json describes"
            )
        tensor.check_usable(spec.dtype)
        if self._is_tied and target.parameter in ("embed", "lm_head"):
            self._tied[target.parameter, target.tensor] = tensor
            if target.parameter == "lm_head":
                return
        self._fill(tensor, target)

    def _is_elsewhere(self, target: Target) -> bool:
        """Whether the tensor belongs to other stages alone. Where embeddings are tied, the last one has them too."""
        is_head_of_tied = self._is_tied and target.parameter == "lm_head"
        return target.parameter in self._elsewhere or (is_head_of_tied and "embed" in self._elsewhere)

    def _is_skipped(self, name: str) -> bool:
        """Whether the decoder does without the tensor."""
        if is_needless(name) or self._names.is_unused(name):
            return True
        index = self._names.layer_index(name) if self._names.mtp_layers else None
        is_mtp = index is not None and index >= len(self._layers)
        if not (is_mtp or name.startswith(self._names.skipped)):
            return False
        self._skipped[".".join(name.split(".")[: 3 if is_mtp else 2])] += 1
        return True

    def finish(self, model_dir: Path) -> None:
        """Makes a tied output projection. Raises CorruptWeights naming the tensors that are missing."""
        for module, count in sorted(self._skipped.items()):
            logger.info("%s: %d tensors of %s are not part of the text model and not loaded", model_dir, count, module)
        if self._is_tied and "embed" in self._parameters:
            self._finish_tied()
        self._check_complete(model_dir)
        if self._stage.is_last and "lm_head" not in self._weights.linears:
            bias = self._tied.get(("lm_head", "bias"))
            dtype = self._weights.precision.activations
            self._weights.tie_output(self._lm_head.own, None if bias is None else self._own_bias(bias.value.to(dtype)))
        if not self._stage.is_first:
            self._weights.drop_embeddings()

    def _own_bias(self, bias: torch.Tensor) -> torch.Tensor:
        """This rank's part of the tied output projection's bias."""
        own = bias.new_empty(self._lm_head.own.num_rows)
        copy_rows(bias, self._lm_head.slice.runs(None), None, None, own)
        return own

    def _spec_of(self, target: Target) -> TensorSpec | None:
        """The shape and type of the target's tensor; None if the parameter has no such tensor or part."""
        sliced = self._parameters.get(target.parameter)
        if sliced is None and self._is_tied and target.parameter == "lm_head":
            sliced = self._lm_head
        if sliced is None or not sliced.whole.is_stored or (target.part or 0) >= len(sliced.whole.parts):
            return None
        return self._weights.specs(sliced.whole).get(target.tensor)

    def _fill(self, tensor: CheckpointTensor, target: Target) -> None:
        sliced = self._parameters[target.parameter]
        pending = self._pending.get(target.parameter)
        if pending is None:
            if target.parameter in self._complete:
                raise CorruptWeights(f"{tensor.path}: tensor {tensor.name!r} is there twice")
            pending = _Pending(sliced, self._weights.specs(sliced.own), self._weights.precision.device)
            self._pending[target.parameter] = pending
        self._copy(tensor, target, sliced.whole, pending)
        if not pending.missing:
            del self._pending[target.parameter]
            self._complete.add(target.parameter)
            self._weights.put(target.parameter, sliced.own, pending.tensors, is_partial=sliced.slice.is_partial)

    def _copy(self, tensor: CheckpointTensor, target: Target, parameter: Parameter, pending: _Pending) -> None:
        spec = self._weights.specs(parameter)[target.tensor]
        wanted = spec.shape if target.part is None else (spec.parts[target.part], *spec.shape[1:])
        value = tensor.value
        if parameter.role == "experts" and value.ndim == 3 and self._names.transposed_experts:
            value = value.transpose(1, 2)
        if parameter.role == "experts" and target.part is None and value.ndim == len(wanted) + 1:
            # All experts of a layer in one tensor. Its rows are not yet put in a row: that may copy all of them.
            wanted = (len(value), wanted[0] // max(len(value), 1), *wanted[1:])
        if parameter.role == "correction":
            value = value.flatten()  # Some checkpoints store it as a row.
        if parameter.role == "conv" and value.ndim == 3 and value.shape[1] == 1:
            value = value.squeeze(1)
        if self._names.transposed and target.parameter.startswith("layers.") and value.ndim == 2:
            value = value.t()
        if tuple(value.shape) != tuple(wanted):
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} has shape {list(value.shape)}, "
                f"config.json asks for {list(wanted)}"
            )
        order = self._names.row_order(tensor.name, self._layers)
        pending.fill(target.tensor, target.part, value, order)

    def _finish_tied(self) -> None:
        """Ties as transformers 5 does: one stored table is used for both, and two that differ are not tied."""
        embed, head = self._tied.get(("embed", "weight")), self._tied.get(("lm_head", "weight"))
        if head is not None and embed is None:
            self._fill(head, Target("embed", "weight", None))
        elif self._stage.is_last and head is not None and embed is not None and not _are_equal(head.value, embed.value):
            logger.warning(
                "%s: tensor %r differs from %r, so the two are not tied, though config.json says so (set "
                "tie_word_embeddings to false in it to silence this)",
                head.path, head.name, embed.name,
            )  # fmt: skip
            self._parameters["lm_head"] = self._lm_head
            for (parameter, name), tensor in list(self._tied.items()):
                if parameter == "lm_head":
                    self._fill(tensor, Target("lm_head", name, None))

    def _check_complete(self, model_dir: Path) -> None:
        """Raises CorruptWeights naming the tensors that are missing."""
        # A checkpoint tensor that fills several places is named once.
        missing = list(
            dict.fromkeys(
                self._names.source(name, tensor, part, self._layers)
                for name, sliced in self._parameters.items()
                if name not in self._complete
                for tensor, spec in self._weights.specs(sliced.whole).items()
                for part in range(len(spec.parts))
                if name not in self._pending or (tensor, part) in self._pending[name].missing
            )
        )
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CorruptWeights(f"{model_dir}: the checkpoint lacks {len(missing)} tensors: {shown}")
