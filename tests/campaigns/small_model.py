"""The demo model cut to its first layers, and a request that compresses it in seconds."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.cli.demo_inputs import fetch_model, write_texts
from schemas.request.config import RunConfig
from tests.integration.support import ask
from workers.checkpoint.names import CONFIG, WEIGHTS


def cut_model(folder: Path, layers: int) -> Path:
    """SmolLM2 with its first layers only, in a folder of its own below `folder`."""
    demo = fetch_model(folder / "SmolLM2-135M-Instruct")
    cut = folder / f"SmolLM2-{layers}-layers"
    if (cut / CONFIG).is_file():
        return cut
    cut.mkdir(parents=True, exist_ok=True)
    config = json.loads((demo / CONFIG).read_text(encoding="utf-8"))
    dropped = tuple(f"model.layers.{at}." for at in range(layers, config["num_hidden_layers"]))
    with safe_open(demo / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(dropped)]  # noqa: SIM118
        save_file({name: file.get_tensor(name) for name in names}, cut / WEIGHTS, {"format": "pt"})
    for path in demo.iterdir():
        if path.name not in (WEIGHTS, CONFIG):
            (cut / path.name).write_bytes(path.read_bytes())
    config["num_hidden_layers"] = layers
    (cut / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return cut


def request(model: Path, text: Path, output: Path, workers: int | None = None) -> RunConfig:
    """4,096 tokens forward and 2,048 backward."""
    return ask(model, text, output, samples=64, gradient_samples=32, workers=workers)


def inputs(folder: Path, layers: int) -> tuple[Path, Path]:
    """The cut model, and the text that it is calibrated on."""
    return cut_model(folder, layers), write_texts(folder / "text")[0]
