"""Bytes: what a worker holds while it calibrates and factorises, and what a run leaves on disk.

Everything follows from shapes, in the terms of workers/model/shard.py,
workers/calibration/moments.py and workers/compressor.py. Sizes of one layer are in its `LayerCost`,
so a shard's sizes are sums.
"""

import math
from functools import cached_property
from typing import NamedTuple

from pipeline.plan.flops import cut_bytes, order_bytes
from schemas.model.dtypes import ITEM_BYTES, STORED
from schemas.model.spec import MatrixSpec, ModelSpec, whole
from schemas.request.config import RunConfig
from schemas.request.gradients import with_gradients
from schemas.request.methods import TRUNCATIONS, Truncation
from schemas.run.moments import Pass, taps, taps_of
from schemas.run.plan import SAVED_BYTES, DiskUse, LayerRange, WorkerMemory
from schemas.run.targets import budgets
from workers.text.sources import evaluation_source

COMPUTE_BYTES = {dtype: ITEM_BYTES[name] for dtype, name in STORED.items()}
PROCESS_BYTES = 600 * 1024**2  # python, torch and ray themselves
REFINED_BYTES = 4  # of a parameter that is trained within its layer, float32
SUM_BYTES = 12  # a float64 and a float32 for each element of a moment
_LOGIT_CHUNK, _LOGIT_BYTES = 256, 17  # tokens at a time; logits, probabilities, signs, errors


class LayerCost(NamedTuple):
    """One decoder layer, or the sum of several.

    `parameters` counts all its tensors; `forward` and `backward` are elements of each stream's
    moments; `reached` counts the parameters that a token meets.
    """

    parameters: int
    forward: int
    backward: int
    reached: float


class Costs:
    """Costs of one model under one configuration, computed in one dtype.

    `windows` is how many different ones a recovery trains on, if that is known.
    """

    def __init__(
        self, config: RunConfig, spec: ModelSpec, dtype: str, windows: int | None = None
    ) -> None:
        self._windows = windows
        self.config = with_gradients(config, spec)
        self.spec = spec
        self.item = COMPUTE_BYTES[dtype]
        needed = taps(spec.matrices, *self._measured)
        self.taps = [tap for tap in needed if tap.moment and config.calibrates]
        self.parameters = sum(math.prod(tensor.shape) for tensor in spec.tensors)
        self.base_bytes = sum(tensor.nbytes for tensor in spec.tensors)
        self.ends = spec.vocab_size * spec.hidden_size  # the embedding, or the head
        self.layers = self._layers()
        self.outputs_of_a_token = self._most_outputs()
        self._widest = max((tap.size for tap in self.taps), default=0)
        self._largest_moment = max((tap.elements for tap in self.taps), default=0)
        self.factorised = spec.matrices if config.calibrates and config.lowers_ranks else ()
        self.ordered = spec.neurons if config.calibrates else ()
        self._largest_basis = 4 * max(map(self.basis_size, self.factorised), default=0)
        cut = (max(self._factorise(one), cut_bytes(one)) for one in self.factorised)
        self._workspace = max([*cut, *map(order_bytes, self.ordered)], default=0)

    def memory(self, shards: tuple[LayerRange, ...], chain: int) -> WorkerMemory:
        """Return what the worker with the largest shard holds, on its device and on its host."""
        held = [self._held(shard, chain) for shard in shards]
        host = max(held, key=lambda memory: memory.sums + memory.transit)
        largest = max(held, key=lambda memory: memory.device)
        return largest.model_copy(update={"sums": host.sums, "transit": host.transit})

    def disk(self, waves: list[tuple[LayerRange, ...]], replicas: int) -> DiskUse:
        """Return the peak bytes on disk, given the shards of each wave."""
        between = len(waves) - 1
        passes: tuple[Pass, ...] = ("forward", "backward")
        forward, backward = (self.states(self.tokens(direction)) for direction in passes)
        held = [self.of(range(wave[0].start, wave[-1].stop)) for wave in waves]
        partial = max(max(wave.forward, wave.backward) for wave in held)
        each = [self.output(ratio) for ratio in self.config.ratio]
        outputs = max(each) if self.config.budget.measured else sum(each)  # one trial is published
        return DiskUse(
            moments=sum(4 * tap.elements for tap in self.taps),
            bases=self.kept_bases,
            boundaries=max(  # on the way up those of both texts; on the way down gradients, too
                min(2, between) * forward + between * backward,
                min(1, between) * backward + between * backward,
                self.states(self.compared_tokens + self.taught_tokens),
            ),
            partial_sums=SUM_BYTES * partial * replicas if replicas > 1 else 0,
            training=self._states * max(map(self.trained, self.config.ratio)),
            recovered=outputs * self.config.trains,
            factors=sum(each),
            outputs=outputs,
        )

    def of(self, layers: range) -> LayerCost:
        """Return the sum over some layers."""
        return LayerCost(
            *(sum(column) for column in zip(*(self.layers[i] for i in layers), strict=True))
        )

    @cached_property
    def moments_read(self) -> int:
        """Bytes of moments read to see every matrix once; each matrix rereads a shared moment."""
        found = (tap for matrix in self.spec.matrices for tap in taps_of(matrix, *self._measured))
        return sum(4 * tap.elements for tap in found if tap.moment)

    @property
    def kept_bases(self) -> int:
        """Bytes of the stored bases: all of them in float32, or none."""
        if not self.config.cluster.keep_bases:
            return 0
        return sum(4 * self.basis_size(matrix) for matrix in self.factorised)

    def output(self, ratio: float) -> int:
        """Bytes of the checkpoint at one ratio."""
        removed = self.spec.targeted - self.stays(ratio)
        return int(self.base_bytes * (1 - removed / self.parameters))

    def stays(self, ratio: float) -> int:
        """Parameters of the targeted matrices that stay at one ratio."""
        return sum(
            whole((1 - own) * sum(matrix.size for matrix in group))
            for own, group in budgets(self.config, self.spec.matrices, ratio)
        )

    def states(self, tokens: int) -> int:
        """Bytes of the hidden states of so many tokens, between two layers or after the last."""
        return tokens * self.spec.hidden_size * self.item

    @property
    def compared_tokens(self) -> int:
        """Tokens on which results are compared with the base; 0 without a text for it."""
        asked = self.config.evaluation
        there = evaluation_source(asked.text, self.config.calibration.text) is not None
        return there * asked.windows * asked.sequence_length

    def windows(self, direction: Pass) -> tuple[int, int]:
        """Windows of a stream, and tokens in each."""
        text = self.config.calibration
        if direction == "forward":
            return text.samples * self.config.calibrates, text.sequence_length
        windows = text.gradient_samples if self.config.needs_gradients else 0
        return windows or 0, text.gradient_length

    def tokens(self, direction: Pass) -> int:
        return math.prod(self.windows(direction))

    @property
    def trained_windows(self) -> int:
        """Different windows that training has; as many as it asks for, if that is not known."""
        if self._windows is not None:
            return self._windows
        return max(1, self.config.training_tokens // self.config.recovery.sequence_length)

    def trained(self, ratio: float) -> int:
        """Parameters that are trained at one ratio: the factors, or the updates beside them of a
        rank r, of two factors r (m + n + 2 k) at most, k being the rank of the matrix.
        """
        if not self.config.trains:
            return 0
        if (rank := self.config.recovery.rank_of_updates) is None:
            return self.stays(ratio) - self.dense
        sides = (m.out_features + m.in_features + 2 * m.small for m in self.spec.matrices)
        return rank * sum(sides)

    @property
    def dense(self) -> int:
        """Parameters of targeted matrices that stay dense at any ratio."""
        if self.config.lowers_ranks:
            return 0
        return sum(matrix.size for matrix in self.spec.matrices if not matrix.neurons)

    @property
    def _measured(self) -> tuple[Truncation, bool, bool]:
        """What the taps of a matrix depend on."""
        return self.config.truncation, self.config.needs_gradients, self.config.lowers_ranks

    @property
    def _states(self) -> int:
        """Bytes on disk, of each trained parameter, from which training can go on: up to two states
        of all, and the refined layers.
        """
        asked = self.config
        return 2 * SAVED_BYTES * asked.recovery.enabled + REFINED_BYTES * asked.refinement.enabled

    @property
    def taught_tokens(self) -> int:
        """Tokens of which a recovery needs the base's last hidden states: those to train on, each
        once, and those that judge.
        """
        asked = self.config.recovery
        if not self.config.trains or not asked.taught:
            return 0
        windows = self.trained_windows * asked.enabled + asked.held_out
        return windows * asked.sequence_length

    @property
    def refined_windows(self) -> int:
        """Windows that the factors of each layer are trained on alone: no more than there are."""
        asked = self.config.refinement
        return min(asked.windows, self.trained_windows) if asked.enabled else 0

    @property
    def refined_tokens(self) -> int:
        """Tokens of these windows, each pass counted."""
        length = self.config.recovery.sequence_length
        return self.refined_windows * self.config.refinement.passes * length

    def basis_size(self, matrix: MatrixSpec) -> int:
        """Elements of a matrix's basis: two squares, or U and V on the full Gram."""
        row = TRUNCATIONS[self.config.truncation]
        if row.full_gram or row.scaled:
            return matrix.small * (matrix.out_features + matrix.in_features)
        return 2 * matrix.small**2

    def _held(self, shard: LayerRange, chain: int) -> WorkerMemory:
        spec = self.spec
        mine = self.of(shard.range)
        first, last = shard.start == 0, shard.stop == spec.layers
        # A layer being read; or a basis and the moments it comes from, as bytes and as tensors,
        # which is more than a moment being committed (its sums in one piece, and the mean).
        read = 4 * max(self.ends, *(layer.parameters for layer in self.layers))
        transit = max(read, self._largest_basis + 4 * 4 * self._largest_moment)
        weights = (mine.parameters + (first + last) * self.ends) * self.item
        return WorkerMemory(
            weights=weights if self.config.calibrates else 0,
            forward_moments=4 * mine.forward,
            backward_moments=4 * mine.backward,
            activations=self._activations(len(shard.range), chain, last),
            factorise=self._workspace,
            sums=SUM_BYTES * max(mine.forward, mine.backward),
            bases=self._largest_basis,
            transit=transit,
            process=PROCESS_BYTES,
        )

    def _activations(self, layers: int, chain: int, last: bool) -> int:
        """Return the larger of two streams. Forward: one layer's outputs and its rows in float32.
        Backward: twice those (values and gradients), the inputs of every layer for each of
        2 x `chain` micro-batches, and the logits of 256 tokens.
        """
        hidden, micro_batch = self.spec.hidden_size, self.config.calibration.micro_batch
        per_token = (2 * hidden + self.outputs_of_a_token) * self.item + 4 * self._widest
        if not self.tokens("forward"):
            return 0
        forward = micro_batch * self.config.calibration.sequence_length * per_token
        if not self.tokens("backward"):
            return int(forward)
        length = micro_batch * self.config.calibration.gradient_length
        kept = layers * 2 * chain * length * hidden * self.item
        logits = min(length, _LOGIT_CHUNK) * self.spec.vocab_size * _LOGIT_BYTES if last else 0
        return int(max(forward, kept + 2 * length * per_token + logits))

    def _factorise(self, matrix: MatrixSpec) -> int:
        """Float64: about eleven square matrices of the smaller side; or, on the full Gram or of a
        scaled W, five times that W (as such, its product, and a copy and results of its SVD), three
        squares of the smaller side, and three of the side that is factorised, or six if that takes
        an eigenproblem.
        """
        row = TRUNCATIONS[self.config.truncation]
        if not (row.full_gram or row.scaled):
            return 8 * 11 * matrix.small**2
        side = matrix.in_features if row.full_gram else matrix.small
        squares = 6 if row.full_gram and not row.cholesky else 3
        return 8 * (5 * matrix.size + 3 * matrix.small**2 + squares * side**2)

    def _layers(self) -> list[LayerCost]:
        spec = self.spec
        parameters, reached = [0] * spec.layers, [0.0] * spec.layers
        for tensor in spec.tensors:
            if tensor.layer is not None:
                parameters[tensor.layer] += math.prod(tensor.shape)
        for matrix in spec.matrices:
            if not matrix.is_head:  # whose product is taken backward only, and counted there
                reached[matrix.layer] += matrix.size
        elements = {d: [0] * spec.layers for d in ("forward", "backward")}
        for tap in self.taps:
            elements[tap.direction][tap.layer] += tap.elements
        columns = (parameters, elements["forward"], elements["backward"], reached)
        return [LayerCost(*values) for values in zip(*columns, strict=True)]

    def _most_outputs(self) -> float:
        """Return how many elements all matrices of a layer output for one token."""
        outputs = [0.0] * self.spec.layers
        for matrix in self.spec.matrices:
            if not matrix.is_head:  # the logits are counted by themselves
                outputs[matrix.layer] += matrix.out_features
        return max(outputs)
