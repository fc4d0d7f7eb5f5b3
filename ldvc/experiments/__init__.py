"""Lists of experiments, what they found, and what is published."""
