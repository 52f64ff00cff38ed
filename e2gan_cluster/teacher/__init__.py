"""Diffusion editors behind one small interface, the bundled one, and its training."""
