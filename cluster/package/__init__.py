"""A package: what a challenge or a paper's reader is handed of a run, with everything needed to check it."""
