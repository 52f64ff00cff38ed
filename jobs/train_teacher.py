"""Trains the bundled teacher, or fine-tunes an InstructPix2Pix-type teacher on your own triples.

python jobs/train_teacher.py --photos DIR --out runs/teacher                  # the bundled teacher
python jobs/train_teacher.py --triples DIR --model MODEL --out runs/tuned     # your own triples
"""

import sys

from e2gan_cluster.teacher.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
