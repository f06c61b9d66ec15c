"""The request: read from flags and files, checked, and made definite."""
