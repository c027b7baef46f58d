"""Search as a service: an HTTP API and one page, on Ray Serve."""
