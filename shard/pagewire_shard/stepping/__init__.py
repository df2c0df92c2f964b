"""The thread that owns the device, turn after turn."""
