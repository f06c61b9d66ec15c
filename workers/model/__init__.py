"""Decoder layers, in memory and in shards."""
