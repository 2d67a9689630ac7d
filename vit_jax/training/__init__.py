"""The training loop and what it needs: state, mesh, checkpoints."""
