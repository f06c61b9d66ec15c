"""The Ray actors: thin shells, and the only files of workers/ that import Ray."""
