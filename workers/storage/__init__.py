"""Items of a run, with one commit rule for all, in folders and object stores."""
