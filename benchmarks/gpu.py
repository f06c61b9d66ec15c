"""All that only a GPU can tell, one part after the other.

    python -m benchmarks.gpu --work-dir DIR [--only layer serve]

- tests: the CUDA paths give the numbers of the CPU (tests/gpu).
- layer: a decoder layer of Llama-3-70B's shape through every step of a worker.
- serve: `svdllm bench` of a random Llama, 4,096 wide of 4 layers, and of what is cut from it.
- compiled: the same with torch.compile and CUDA graphs.

A part that fails does not keep the others from running; the exit status is 1. What a part prints is
also in DIR/PART.log.
"""

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.random_llama import save_random_llama
from benchmarks.serving import Form, compressed

PARTS = ("tests", "layer", "serve", "compiled")
_LAYER = "--device cuda --tokens 16384 --length 2048 --batch 4 --threads 8"
_BENCH = "--dtype bfloat16 --batch 1,8 --new-tokens 64 --rounds 3 --trust-remote-code"
_RATIOS, _FORMS = (0.2, 0.4), tuple[Form, ...](("plain", "pivoted", "pruned", "neurons"))


def main() -> None:
    """Run the parts, and print what each took."""
    options = _parse()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    options.work_dir.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    failed = False
    for part in options.only:
        start = time.perf_counter()
        status = _run(_command(part, options.work_dir), options.work_dir / f"{part}.log")
        failed |= status != 0
        print(f"{part}: exit {status} after {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(int(failed))


def _command(part: str, folder: Path) -> list[str]:
    if part == "tests":
        return ["pytest", "tests/gpu"]
    if part == "layer":
        return ["benchmarks.layer_70b", "--work-dir", str(folder), *_LAYER.split()]
    base = folder / "llama-4096x4"
    if not base.is_dir():
        save_random_llama(base, 4096, 4)
    cuts = itertools.product(_FORMS, _RATIOS)
    first, *more = (str(compressed(base, *cut, multiple=64)) for cut in cuts)
    models = [first, "--baseline", str(base), "--also", ",".join(more)]
    report = ["--json", str(folder / f"{part}.json")]
    compiled = ["--compiled"] * (part == "compiled")
    return ["pipeline", "bench", *models, *_BENCH.split(), *compiled, *report]


def _run(module: list[str], log: Path) -> int:
    """Run a module, its output here and in a file; return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with log.open("w", encoding="utf-8") as file:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
    return process.wait()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
