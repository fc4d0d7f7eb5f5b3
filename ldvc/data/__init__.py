"""Datasets: read, checked, converted and augmented."""
