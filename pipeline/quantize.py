"""`svdllm quantize`: fewer bits for the linear layers of a checkpoint, compressed or not."""

import contextlib
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.evaluate import local_folder
from pipeline.export import rotate, staged_beside, temporary_beside
from pipeline.report.card import write_quantised_card
from pipeline.request.inputs import tokens_sha256
from pipeline.request.places import require_apart
from pipeline.stages import assemble
from pipeline.stages.publish import publish_output
from schemas.location import full_path
from schemas.request.quantization import ROTATED, QuantizationConfig
from schemas.request.texts import shares_of
from schemas.result.manifest import Compression
from schemas.result.quantization import QuantisedLinear, Quantization
from schemas.run.context import fitted
from schemas.run.identity import Identities, fingerprint
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import LOW_RANK, context_of
from workers.checkpoint.names import COMPRESSION, QUANTIZATION
from workers.checkpoint.published import read_compression, read_manifest
from workers.checkpoint.verify import require, verify_checkpoint
from workers.evaluation.perplexity import require_vocabulary
from workers.model.loading import load_model, load_tokenizer
from workers.process.devices import find_device, free_cached
from workers.process.logs import log
from workers.quantisation import require_installed
from workers.storage.files import copy, sha256_of, write_text
from workers.text.documents import require_readable
from workers.text.mixture import read_mixture

_NOT_CALIBRATED = Identities(forward="", backward=None, bases="", factors="")


def quantize(config: QuantizationConfig, base: str | None = None) -> Quantization:
    """Quantise, verify and publish a checkpoint; `base` is what the card calls one that is not
    compressed, if that is not what the request names.

    Without a calibration text, one tensor after the other is rounded to nearest and no model is
    loaded; with one, the whole model is. Raises ConfigError if compressed-tensors is not installed
    or the output is taken, CheckpointError, TextError, NumericsError or VerificationError.
    """
    require_installed()
    require_readable(shares_of(config.calibration), "calibration")
    output = full_path(config.output)
    with contextlib.ExitStack() as copies, staged_beside(output) as staging:
        folder = local_folder(config.checkpoint, None, copies)
        require_apart(output, folder, "checkpoint")
        config = within(config, folder)
        windows = _windows(config, folder) if config.calibration else None
        done, identity = _write(config, folder, staging, base, windows)
        checks = verify_checkpoint(staging, published=False)
        for check in checks:
            log.info("verify: %s: %s", check.name, check.detail or check.passed)
        require(checks, output)
        publish_output(staging, output, identity)
    return done


def within(config: QuantizationConfig, folder: Path) -> QuantizationConfig:
    """Return the request with windows that fit the model, if there are any."""
    if not config.calibration:
        return config
    context = context_of(read_config(folder))
    return fitted(config, context, sequence_length="--sequence-length ")


def require_quantisable(config: QuantizationConfig, folder: Path) -> Any:
    """Return the linear layers of a checkpoint in a folder that are to be quantised.

    Raises CheckpointError or ConfigError if there are none, or if transformers would not load what
    became of them.
    """
    from workers.quantisation.linears import find_linears
    from workers.quantisation.rehearsal import require_loadable

    found = find_linears(folder, config)
    require_loadable(config, folder, found)
    return found


def is_made_so(done: Quantization, config: QuantizationConfig) -> bool:
    """Whether a checkpoint was quantised as is asked, from what the folder describes by now."""
    folder = Path(config.checkpoint)
    config = within(config, folder)
    listed = {name: found for name, found in done.source_files.items() if name.endswith(".json")}
    there = [name for name in listed if (folder / name).is_file()]
    alike = ("checkpoint", "scheme", "calibration", "seed", "group_size")
    return (
        all(getattr(done, name) == getattr(config, name) for name in alike)
        and done.text == text_of(config, folder)
        and listed == sha256_of(folder, there)
    )


def _write(
    config: QuantizationConfig,
    folder: Path,
    staging: Path,
    base: str | None,
    windows: Tensor | None,
) -> tuple[Quantization, str]:
    """Write all files of the quantised checkpoint; return what was done, and its identity."""
    files = (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    source_files = sha256_of(folder, sorted(path.name for path in files if path.is_file()))
    if config.scheme not in ROTATED or LOW_RANK not in read_config(folder):
        done, compression = _round(config, folder, staging, source_files, windows)
    else:
        with temporary_beside(full_path(config.output)) as rotated:
            restated = rotate(folder, rotated, config.seed, config.ignore)
            done, compression = _round(config, rotated, staging, source_files, windows)
        before = read_compression(folder).bytes_after
        done = done.model_copy(update={"restated": restated, "bytes_before": before})
    if base and compression is None:
        done = done.model_copy(update={"base": base})
    write_text(staging / QUANTIZATION, done.model_dump_json(indent=2) + "\n")
    write_quantised_card(folder, staging, done, compression)
    return done, _seal(folder, staging, done, compression)


def _round(
    config: QuantizationConfig,
    folder: Path,
    staging: Path,
    source_files: dict[str, str],
    windows: Tensor | None,
) -> tuple[Quantization, Compression | None]:
    """Write the weights of a folder with fewer bits, its config.json, and what is kept as it is;
    return what was done, and how the folder was compressed, if it was. It calibrates on `windows`,
    if there are any.
    """
    from workers.quantisation.files import write_config, write_weights
    from workers.quantisation.linears import shared_ranges
    from workers.quantisation.rounding import quantised

    found = require_quantisable(config, folder)
    largest = shared_ranges(folder, found)
    compression = read_compression(folder) if LOW_RANK in read_config(folder) else None
    assemble.copy_beside(staging, folder)
    for path in folder.glob("*.py") if compression else ():
        copy(path, staging / path.name)
    linears: dict[str, QuantisedLinear] = {}
    calibrated, text = dict[str, dict[str, Tensor]](), None
    if windows is not None:
        text = tokens_sha256(windows)
        calibrated = _calibrated(config, folder, found, largest, linears, windows)
        for name in [name for name in found.schemes if name not in calibrated]:
            found.stay[name] = "the text does not reach it"
            del found.schemes[name], found.tensors[name]

    def store(name: str, weight: Tensor) -> dict[str, Tensor]:
        if name in calibrated:
            return calibrated.pop(name)
        scheme, limit = found.schemes[name], largest.get(name)
        rounded = quantised(weight, scheme, found.dtype, largest=limit)
        linears[name] = _described(name, weight, scheme, rounded)
        return rounded.stored

    before, files = write_weights(folder, staging, found.tensors, store)
    assemble.write_index(staging, files)
    write_config(folder, staging, found.schemes, found.others)
    done = Quantization(
        checkpoint=config.checkpoint,
        base=compression.model if compression else config.checkpoint,
        scheme=config.scheme,
        method="GPTQ" if config.calibration else "round to nearest",
        calibration=config.calibration,
        tokens=0 if windows is None else windows.numel(),
        text=text,
        group_size=config.group_size,
        dtype=config.dtype if config.calibration else None,
        damping=config.damping if config.calibration else None,
        seed=config.seed,
        device=find_device(config.device).type if config.calibration else "cpu",
        bytes_before=before,
        bytes_after=assemble.size_of(files)[1],
        stay=found.stay,
        linears=tuple(linears[name] for name in found.schemes),
        source_files=source_files,
    )
    return done, compression


def _calibrated(
    config: QuantizationConfig,
    folder: Path,
    found: Any,
    largest: dict[str, Tensor],
    linears: dict[str, QuantisedLinear],
    windows: Tensor,
) -> dict[str, dict[str, Tensor]]:
    """Return what is stored of each linear layer that the calibration text reaches."""
    from workers.quantisation.linears import calibrate
    from workers.quantisation.rounding import input_range, quantised

    model = load_model(folder, config.dtype, config.device, trust_remote_code=False)
    stored: dict[str, dict[str, Tensor]] = {}

    def quantise(name: str, weight: Tensor, moment: Tensor, input_largest: Tensor) -> Tensor:
        scheme = found.schemes[name]
        limit = largest[name].to(weight.device) if name in largest else None
        rounded = quantised(weight, scheme, found.dtype, moment, config.damping, limit)
        linears[name] = _described(name, weight, scheme, rounded)
        stored[name] = {
            tail: tensor.cpu()
            for tail, tensor in (rounded.stored | input_range(scheme, input_largest)).items()
        }
        log.info("%s: %d of %d", name, len(stored), len(found.schemes))
        return rounded.weight

    try:
        require_vocabulary(folder, windows, model.config.get_text_config().vocab_size)
        calibrate(model, windows, found.schemes, quantise)
    finally:
        del model
        free_cached()  # parts of a model may refer to one another
    return stored


def text_of(config: QuantizationConfig, folder: Path) -> str | None:
    """Identify the windows that a request that fits the model calibrates on, if there are any."""
    return tokens_sha256(_windows(config, folder)) if config.calibration else None


def _windows(config: QuantizationConfig, folder: Path) -> Tensor:
    length, count = config.sequence_length, config.calibration_samples
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    mixture = read_mixture(config.calibration, tokenizer, [(count, length)])
    return mixture.windows(length, count, config.seed)


def _described(name: str, weight: Tensor, scheme: Any, rounded: Any) -> QuantisedLinear:
    stored = sum(tensor.nbytes for tensor in rounded.stored.values())
    return QuantisedLinear(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        group=scheme.weights.group_size,
        bits=8 * stored / weight.numel(),
        error=rounded.error,
    )


def _seal(folder: Path, staging: Path, done: Quantization, compression: Compression | None) -> str:
    """Write compression.json, if there is one, and manifest.json; return the output's identity."""
    sizes = {"bytes_before", "bytes_after", "linears", "checkpoint", "base"}
    identity = fingerprint(done.model_dump(mode="json", exclude=sizes))
    made_from, identities = done.source_files, _NOT_CALIBRATED
    if compression is not None:
        manifest = read_manifest(folder)
        made_from, identities = manifest.base_files, manifest.identities
        changed = {"bytes_after": done.bytes_after, "scheme": done.scheme}
        text = compression.model_copy(update=changed).model_dump_json(indent=2) + "\n"
        write_text(staging / COMPRESSION, text)
    assemble.list_files(staging, identity, identities, made_from)
    return identity
