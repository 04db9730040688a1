"""From prompts to images."""
