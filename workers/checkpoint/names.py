"""Names of the files of a checkpoint."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"
COMPRESSION = "compression.json"
QUANTIZATION = "quantization.json"
EVALUATION = "evaluation.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
CARD = "README.md"
SUCCESS = "_SUCCESS"
CLAIM = "_PUBLISHING"  # names the output, and the weights, that are being published


def weight_file(index: int, files: int) -> str:
    """Return the name of weight file `index` of so many."""
    return WEIGHTS if files == 1 else f"model-{index + 1:05d}-of-{files:05d}.safetensors"
