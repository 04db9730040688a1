"""Training data that the base makes: captions, latents of its own images, neighbouring concepts."""
