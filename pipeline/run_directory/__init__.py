"""What a run directory holds, whose it is, and how far it is."""
