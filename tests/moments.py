"""A run directory with moments of noise beside a model, for tests of what is cut by them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.request.config import RunConfig
from schemas.result.output import MatrixResult
from schemas.run.identity import Identities
from schemas.run.moments import Tap, taps
from tests.models import tiny_model
from workers.checkpoint.tensors import TensorReader
from workers.compressor import Compressor
from workers.model.inspection import inspect
from workers.storage.keys import factors_key, moment_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries

IDS = Identities(forward="x", backward="g", bases="b", factors="f", neurons="n")
TOKENS = 16 * 48  # of every moment: what the widest needs


class Run(NamedTuple):
    """A run directory beside a model, before anything is factorised."""

    config: RunConfig
    folder: Path
    spec: ModelSpec

    @property
    def store(self) -> Store:
        return Store(self.config.run_folder)

    @property
    def compressor(self) -> Compressor:
        return self.on(torch.device("cpu"))

    def on(self, device: torch.device) -> Compressor:
        reader = TensorReader(self.folder, self.spec)
        return Compressor(self.config, self.spec, reader, IDS, device)

    def matrix(self, path: str) -> MatrixSpec:
        return next(m for m in self.spec.matrices if m.path == path)

    def weight(self, path: str) -> Tensor:
        name = f"model.{self.matrix(path).name}.weight"
        return load_file(self.folder / "model.safetensors")[name].double()

    def cut(self, path: str, rank: int) -> MatrixResult:
        matrix = self.matrix(path)
        self.compressor.factorise([matrix])
        record = self.compressor.truncate(matrix, rank)
        return MatrixResult.model_validate(record.facts)

    def stored(self, path: str, rank: int) -> dict[str, Tensor]:
        """The tensors of the factors, in float64 but for the order."""
        tensors = self.store.load(factors_key(IDS, self.matrix(path).name, rank)).tensors
        return {k: t if k == "order" else t.double() for k, t in tensors.items()}


def moment(seed: int, size: int) -> Tensor:
    rows = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows / TOKENS


def make_run(
    folder: Path, method: str = "two-sided", allocation: str | None = None, **options: Any
) -> Run:
    """Moments of noise for all that is cut; `options` are those of the numerics."""
    model = tiny_model(folder / "model", num_hidden_layers=1)
    fields = {"model": str(model), "output": folder / "out", "ratio": 0.2, "method": method}
    asked = {"allocation": {"method": allocation}} if allocation else {}
    config = RunConfig.model_validate(fields | asked | {"numerics": options})
    run = Run(config, model, inspect(model))
    for tap in taps(run.spec.matrices, config.truncation, True, config.lowers_ranks):
        square = moment(len(tap.name), tap.size)
        commit(run, tap, square if tap.of == "values" else square.diagonal()[None])
    return run


def commit(run: Run, tap: Tap, matrix: Tensor, tokens: int = TOKENS) -> None:
    tensors = {
        "moment": matrix,
        "trace": matrix.trace().double(),
        "tokens": torch.tensor(tokens),
        "fourth": matrix.trace().double().square(),
    }
    key = moment_key(IDS, tap)
    run.store.forget(key)  # items are immutable
    run.store.commit(key, entries(tensors))
