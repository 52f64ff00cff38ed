"""Networks in pure torch: generator, discriminator, losses, LoRA, profile. No I/O, no Ray, no config objects."""
