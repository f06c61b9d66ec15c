"""One model stored with q, k, v and gate, up apart, and with each group fused: what a cut costs.

    python -m benchmarks.fused --model DIR --calibration TEXT --evaluation TEXT --work-dir DIR

A Llama and a Phi-3 of the same weights compute the same function. Both are compressed at the same
ratios, so at equal parameters, and should lose as much: the parts of what is fused are cut apart.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.scoring import score
from pipeline.compress import compress
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, EvaluationTextConfig
from workers.process.logs import set_up_logging

_GROUPS = {"self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": ("gate", "up")}


def main() -> None:
    """Compress both forms, evaluate every result, print one table."""
    options = _parse()
    set_up_logging()
    forms = {"apart": Path(options.model), "fused": fuse(Path(options.model), options.work_dir)}
    table = Table("stored", "removed", "nats predicted", "measured", "perplexity")
    dense = score(options.model, options.evaluation, options.windows)
    for form, model in forms.items():
        config = RunConfig(
            model=str(model),
            output=options.work_dir / form,
            ratio=tuple(options.ratio),
            calibration=CalibrationConfig(
                text=options.calibration, samples=options.samples, sequence_length=1024
            ),
            evaluation=EvaluationTextConfig(text="none"),
            cluster=ClusterConfig(workers=2),
        )
        for output in compress(config).outputs:
            found = score(str(output.path), options.evaluation, options.windows)
            table.add_row(
                form,
                f"{output.compression.removed:.2%}",
                f"{output.compression.nats:.4f}",
                f"{found.mean_nll - dense.mean_nll:.4f}",
                f"{found.perplexity:.2f}",
            )
    Console().print(table, f"dense {dense.perplexity:.2f}")


def fuse(model: Path, work: Path) -> Path:
    """Write a Llama checkpoint as a Phi-3 of the same weights, which fuses q, k, v and gate, up."""
    folder = work / "phi3"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(_fused(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0}
    config["original_max_position_embeddings"] = config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    for fused, parts in _GROUPS.items():
        owner = fused.partition(".")[0]
        members = [f"{owner}.{part}_proj.weight" for part in parts]
        for stem in [n.removesuffix(members[0]) for n in tensors if n.endswith(members[0])]:
            rows = [found.pop(f"{stem}{member}") for member in members]
            found[f"{stem}{fused}.weight"] = torch.cat(rows)
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
