"""What commands are given, and what it means: options, jobs, devices, files to write."""
