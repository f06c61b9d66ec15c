"""Linear layers with fewer bits, in the formats of compressed-tensors, which this alone imports."""
