"""The report of a run: facts gathered as it ends, and pages rendered from them alone."""
