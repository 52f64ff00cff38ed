"""Ray job entry point of a whole batch, or of some stages of it.

Example: ``ray job submit --working-dir . -- python jobs/run_batch.py --config configs/demo.yaml``
"""

import sys

from e2gan_cluster.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
