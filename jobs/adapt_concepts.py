"""Ray job entry point of the adaptation of new concepts.

Example: ``ray job submit --working-dir . -- python jobs/adapt_concepts.py --config configs/demo.yaml``
"""

import sys

from e2gan_cluster.cli import main

if __name__ == "__main__":
    main(["adapt", *sys.argv[1:]])
