"""Items of a run, one commit rule for all, in folders and object stores."""
