"""Ray job entry point of pair generation.

Example: ``ray job submit --working-dir . -- python jobs/generate_pairs.py --config configs/demo.yaml``
"""

import sys

from e2gan_cluster.cli import main

if __name__ == "__main__":
    main(["pairs", *sys.argv[1:]])
