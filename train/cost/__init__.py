"""What a job costs before it runs: forward passes, operations and memory."""
