"""Training of the bundled teacher and fine-tuning of InstructPix2Pix-type teachers (development extras)."""
