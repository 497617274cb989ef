"""A run folder, looked at: what is in it, what that means, and how it is shown. Changes nothing in it; no torch."""
