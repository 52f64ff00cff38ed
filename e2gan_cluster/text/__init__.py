"""Prompt encoders: sentences to token states."""
