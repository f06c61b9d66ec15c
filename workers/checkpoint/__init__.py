"""Checkpoints of Hugging Face models: their contents, and whether they are complete."""
