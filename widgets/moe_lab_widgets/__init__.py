"""Live dashboard."""
