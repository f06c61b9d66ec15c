"""What was asked: read from flags and files, checked, and made definite."""
