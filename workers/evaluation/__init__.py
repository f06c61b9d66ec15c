"""Perplexity and divergence, of whole models and through layer shards."""
