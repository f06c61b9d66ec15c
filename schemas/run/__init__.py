"""What a run is made of: identities, plan, moments, ranks and records."""
