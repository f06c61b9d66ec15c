"""Ray: its session, the cluster's resources, the actors, and the pool of workers."""
