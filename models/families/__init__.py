"""The model families that efface knows, one file for each."""
