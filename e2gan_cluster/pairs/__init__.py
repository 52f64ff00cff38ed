"""(photo, edited photo) pairs: photo sources, Ray Data generation, shard files, filters, subsets."""
