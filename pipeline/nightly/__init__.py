"""`svdllm nightly`: new checkpoints of a training run, compressed, judged and published."""
