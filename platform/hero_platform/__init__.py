"""hero_platform."""
