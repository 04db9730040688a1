"""The scheduler in virtual time, and the bounds it is held against."""
