"""Names of the files of a checkpoint."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"
COMPRESSION = "compression.json"
EVALUATION = "evaluation.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
CARD = "README.md"
SUCCESS = "_SUCCESS"
CLAIM = "_PUBLISHING"  # holds the identity of the output that is being published
