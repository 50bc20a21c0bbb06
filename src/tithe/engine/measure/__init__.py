"""What is timed, tuned, or chosen for this machine and model."""
