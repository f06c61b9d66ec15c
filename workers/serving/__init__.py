"""Speed and memory of whole models as they are served, each in a process of its own."""
