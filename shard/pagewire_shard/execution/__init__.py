"""How a batch runs on a device: state, transfers, graphs."""
