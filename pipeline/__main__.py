"""`python -m pipeline` is `svdllm`, from a bare working directory too."""

from pipeline.cli import main

main()
