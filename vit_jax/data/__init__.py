"""Data: sources, image transforms and the batched input pipeline."""
