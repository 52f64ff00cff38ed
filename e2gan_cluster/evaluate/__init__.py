"""Feature networks, metrics on held-out photos, sample grids."""
