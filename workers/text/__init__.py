"""Text from files and data sets, and its windows of tokens."""
