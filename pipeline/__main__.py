"""`svdllm`, and `python -m pipeline` from a bare working directory."""

from pipeline import interrupts


def main() -> None:
    """Entry point of the command; it can be interrupted before its libraries are imported, too."""
    interrupts.install()
    try:
        from pipeline.cli import main as command

        command()
    except KeyboardInterrupt:
        interrupts.leave()
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()
