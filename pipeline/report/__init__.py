"""The report of a run: facts gathered while it ends, and pages that are functions of them."""
