"""What a model consists of: families, matrices and shapes."""
