"""Distil diffusion edits into one small base GAN and a LoRA adapter per effect, on a Ray cluster.

Example: ``e2gan run --config configs/demo.yaml``
"""

__version__ = "0.1.0"
