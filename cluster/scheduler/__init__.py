"""Which worker does what and when: the queue, the dispatch loop, metrics and progress."""
