"""Print requirements.lock: the exact versions that `svdllm[dev]` resolves to, today.

Local versions (torch's +cpu, +cu130) and torch's CUDA companions are left out, so that one lock
serves CPU-only and CUDA machines: pip then takes the companions that the chosen torch asks for.
"""

import json
import re
import subprocess
import sys

# Raised by hand: every build (CPU and each CUDA) of the new version must exist first.
TORCH = "torch==2.13.0"
COMPANIONS = re.compile(r"^(nvidia-|cuda-|triton)")
HEADER = """\
# Exact versions for `svdllm[dev]`, made by `make lock`; do not edit.
# torch has no local version and its CUDA companions are not pinned; pip's settings choose.
"""


def resolve() -> list[dict[str, str]]:
    """Name and version of every package that pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    report = subprocess.run(
        [*command, "--report", "-", ".[dev]", TORCH], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [item["metadata"] for item in json.loads(report)["install"]]


def lines(packages: list[dict[str, str]]) -> list[str]:
    """One sorted `name==version` a package."""
    pins = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"] for p in packages}
    return [
        f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(pins.items())
        if name != "svdllm" and not COMPANIONS.match(name)
    ]


if __name__ == "__main__":
    print(HEADER + "\n".join(lines(resolve())))
