"""Ray: a session, what the cluster has, its actors, and one pool that they work off."""
