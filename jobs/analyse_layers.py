"""Ray job entry point of the crucial-layer analysis of a base.

Example: ``ray job submit --working-dir . -- python jobs/analyse_layers.py --config configs/demo.yaml``
"""

import sys

from e2gan_cluster.cli import main

if __name__ == "__main__":
    main(["layers", *sys.argv[1:]])
