"""Training: one recipe in, one folder out."""
