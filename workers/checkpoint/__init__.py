"""Checkpoints of Hugging Face models: what they hold, and whether they are whole."""
