"""Running attacks: searches that several share, what they come to, and prompts that a run finds by them."""
