"""Work on a Ray cluster that is elsewhere: packaged, submitted, followed, kept (design D11)."""
