"""Figures of what `landscape` computes: each plot takes a Dataset and draws what is in it."""
