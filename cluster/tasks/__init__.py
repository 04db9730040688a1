"""What a task is (`task.py`), and the kinds there are, one file each: calibration, training, judging, metric."""
