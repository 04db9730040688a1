"""Search of a method's settings with Ray Tune and Optuna."""
