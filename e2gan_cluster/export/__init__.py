"""ONNX files for phones and browsers, their parity checks, and running them."""
