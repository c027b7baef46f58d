"""hero_model."""
