"""The work: mathematics, tensor input and output, and the thin Ray actors around them.

Only `workers.actors` imports ray. Nothing here imports `pipeline`.
"""
