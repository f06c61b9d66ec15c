"""Training the factors of a truncated model against the model that they came from."""
