"""What a run leaves behind: manifests, matrices, reports and evaluations."""
