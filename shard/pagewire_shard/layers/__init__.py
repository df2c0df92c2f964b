"""Layers of the decoder: linear, norm, rotary, attention, embedding."""
