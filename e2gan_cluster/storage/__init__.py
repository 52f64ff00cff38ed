"""Object store (folder or S3), the names of all keys, manifests, the adapter registry."""
