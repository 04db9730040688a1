"""Search of a method's settings: an Optuna study whose trials are done by the engine of campaigns."""
