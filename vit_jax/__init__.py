"""ViT, CLIP and DALL-E in JAX, TPU first."""
