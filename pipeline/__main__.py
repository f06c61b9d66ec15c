"""`svdllm`, and `python -m pipeline` from a bare working directory."""

import sys

from pipeline.cli import interrupts
from pipeline.search_path import hiding


def main() -> None:
    """Run the command; an interrupt is handled even while its libraries are being imported."""
    interrupts.install()
    try:
        from pipeline.cli.app import main as command

        command()
    except KeyboardInterrupt:
        interrupts.leave()
    finally:
        interrupts.ignore()


def main_beside_others() -> None:
    """Run `main` under `python -m`, which puts the working directory before installed modules."""
    if found := hiding():
        print(
            f"error: {found} hides the installed module of that name from this program and its "
            "workers; rename it, or start from another folder",
            file=sys.stderr,
        )
        sys.exit(2)
    main()


if __name__ == "__main__":
    main_beside_others()
