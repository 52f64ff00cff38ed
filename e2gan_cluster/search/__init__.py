"""Crucial layers, rank ladder, data ladder, and their Ray Tune driver."""
