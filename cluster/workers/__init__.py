"""Who does a task: the worker, in this process or in Ray actors, and process groups of several GPUs."""
