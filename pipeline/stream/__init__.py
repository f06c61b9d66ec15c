"""Micro-batches through a chain of layer shards, wave by wave."""
