"""Shards, waves, memory, bytes and time of a run, from shapes alone; no tensors, and no Ray."""
