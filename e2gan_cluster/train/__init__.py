"""The training step and loop (pure torch), the Ray Train driver of the base, adapter training."""
