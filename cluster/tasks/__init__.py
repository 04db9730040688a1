"""What a task is (`task.py`), and its kinds, a file each: calibration, prompts, training, judging, metric, attack."""
