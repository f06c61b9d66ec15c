"""Data that crosses a boundary: configurations, plans, identities, rows and errors.

Pydantic only. Nothing here imports torch or ray, and nothing here reads or writes.
"""
