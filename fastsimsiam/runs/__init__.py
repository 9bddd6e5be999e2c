"""What lies in the folder of a run: written by training, read by everything else."""
