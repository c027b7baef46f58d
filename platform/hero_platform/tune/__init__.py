"""Sweeps: search spaces, the study behind them, and trials on Ray Tune (design D10)."""
