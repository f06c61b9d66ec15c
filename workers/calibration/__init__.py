"""Statistics of the calibration text: moments and sampled labels."""
