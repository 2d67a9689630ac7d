"""What a run would take on a TPU, found out without one."""
