"""Whether transformers loads what is to be quantised, which names and shapes decide beforehand."""

import tempfile
from pathlib import Path

from schemas.errors import ConfigError
from schemas.request.quantization import QuantizationConfig
from schemas.result.output import OutputFile, OutputTensor
from workers.checkpoint.contents import weight_files
from workers.checkpoint.headers import read_header
from workers.checkpoint.own_code import may_run_code
from workers.checkpoint.verify import check_shapes
from workers.output import outline
from workers.quantisation.files import write_config
from workers.quantisation.linears import Linears
from workers.quantisation.sizes import with_fewer_bits
from workers.storage.files import copy
from workers.storage.tensorfile import NAMES, write_shapes


def require_loadable(config: QuantizationConfig, folder: Path, found: Linears) -> None:
    """Raises ConfigError if transformers would not load the checkpoint in `folder` with the linear
    layers that were `found` in fewer bits: some kinds of models it does not, as most mixtures of
    experts that stay as they are. Raises CheckpointError if that would run a stranger's code.
    """
    own_code = folder.glob("*.py") if may_run_code(folder, trust_remote_code=False) else ()
    with tempfile.TemporaryDirectory(prefix="svdllm-quantize-") as name:
        place = Path(name)
        for path in own_code:
            copy(path, place / path.name)
        write_config(folder, place, found.schemes, found.others)
        for file in weight_files(folder):
            there = (
                OutputTensor(name=one.name, dtype=one.dtype, shape=one.shape)
                for one in read_header(folder / file)
            )
            asked = with_fewer_bits(
                OutputFile(name=file, tensors=tuple(there)),
                found.tensors.values(),
                config.scheme,
                NAMES[found.dtype],
                config.group_size,
            )
            write_shapes(place / file, outline(asked))
        check = check_shapes(place)
    if check.passed is False:
        raise ConfigError(
            f"{config.checkpoint}: transformers does not load it in {config.scheme} "
            f"({check.detail.strip()}); take another --scheme, such as FP8"
        )
