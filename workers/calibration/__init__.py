"""Statistics of the calibration text: moments and random gradients."""
