"""Ray job entry point of the base's pre-training.

Example: ``ray job submit --working-dir . -- python jobs/pretrain_base.py --config configs/demo.yaml``
"""

import sys

from e2gan_cluster.cli import main

if __name__ == "__main__":
    main(["base", *sys.argv[1:]])
