"""Training: objectives, schedules, optimizers, the loop, and checkpoints that survive a crash."""
